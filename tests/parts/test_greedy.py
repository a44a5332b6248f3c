import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.parts import greedy
from foveate.parts.greedy import apart, cover, farthest, marginal, volume
from foveate.parts.select import spread
from foveate.parts.similarity import cosines


def features(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_volume_is_the_greedy_determinant():
    """Every pick makes the determinant of the picked tokens' kernel as large as any other pick would."""
    likeness = cosines(features(14))
    quality = torch.rand(14, generator=torch.Generator().manual_seed(1)) + 0.1
    kernel = (quality[:, None] * likeness * quality).double()
    picked: list[int] = []
    for one in volume(likeness, quality, 6).tolist():
        found = {j: float(kernel[[*picked, j]][:, [*picked, j]].det()) for j in range(14) if j not in picked}
        assert found[one] == pytest.approx(max(found.values()), rel=1e-4)
        picked.append(one)


def test_volume_begins_anew_on_copies():
    """Three directions, two copies of each, one of poor quality: first the directions, then the copies, best first."""
    x = torch.eye(3).repeat(2, 1)
    quality = torch.tensor([1.0, 0.5, 0.1, 0.9, 0.6, 0.05])
    assert volume(cosines(x), quality, 6).tolist() == [0, 4, 2, 3, 1, 5]


def test_volume_without_quality():
    assert volume(cosines(torch.eye(3)), torch.zeros(3), 3).tolist() == [0, 1, 2]
    assert volume(cosines(torch.zeros(3, 2)), torch.ones(3), 2).tolist() == [0, 1]


def test_more_picks_than_dimensions():
    """In a plane only two directions are new; further rounds pick the others, each once."""
    picked = volume(cosines(features(9, 2)), torch.ones(9), 9)
    assert sorted(picked.tolist()) == list(range(9))


def plainly(similarity: torch.Tensor, k: int, weight: torch.Tensor, floor: float) -> list[int]:
    """Facility location without bounds: all gains anew, on the same numbers."""
    similarity = (similarity.clone().add_(8).sub_(8)).double()
    nearest = torch.full((len(similarity),), floor, dtype=torch.float64)
    picked: list[int] = []
    for _ in range(k):
        gain = (similarity.maximum(nearest).sum(1) - nearest.sum()) * weight.double()
        gain[picked] = -torch.inf
        picked.append(int(gain.argmax()))
        nearest = nearest.maximum(similarity[picked[-1]])
    return picked


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.data())
def test_lazy_is_plain(n, seed, data):
    """To the last tie: features from few whole numbers, so that many tokens are alike."""
    x = features(n, 3, seed).mul(1.5).round()
    k = data.draw(st.integers(1, n))
    floor = data.draw(st.sampled_from([-1.0, 0.0]))
    ones = torch.ones(n)
    weight = data.draw(st.sampled_from([ones, ones.cumsum(0) % 3, torch.zeros(n)]))
    picked = cover(cosines(x), k, weight, floor).tolist()
    assert picked == plainly(cosines(x), k, weight, floor)


@pytest.mark.parametrize("floor", [-1.0, 0.0])
def test_lazy_is_plain_on_many_tokens(floor):
    x = features(1200, 32) + features(40, 32, 1)[torch.arange(1200) // 30]
    weight = torch.rand(1200, generator=torch.Generator().manual_seed(2))
    assert cover(cosines(x), 120, weight, floor).tolist() == plainly(cosines(x), 120, weight, floor)


def test_lazy_looks_at_few(monkeypatch):
    """Rows looked at for 100 picks among 1000 tokens: plain greedy looks at 100000."""
    looked = []
    real, select = torch.maximum, torch.Tensor.index_select

    def counting(x, *rest, **named):
        looked.append(len(x))
        return real(x, *rest, **named)

    def counting_select(self, dim, index):
        looked.append(len(index))
        return select(self, dim, index)

    x = features(1000, 32) + 2 * features(50, 32, 1)[torch.arange(1000) // 20]
    similarity = cosines(x)
    monkeypatch.setattr(torch, "maximum", counting)
    cover(similarity, 100)
    here = sum(looked)
    looked.clear()
    monkeypatch.setattr(torch, "maximum", real)
    monkeypatch.setattr(torch.Tensor, "index_select", counting_select)
    monkeypatch.setattr(greedy, "_cover_on_cpu", greedy._cover_on_device)
    cover(similarity, 100)
    assert 0 < here < 10_000 and 0 < sum(looked) < 10_000


@pytest.mark.parametrize("kind", ["random", "ties", "copies"])
def test_picks_are_the_same_on_the_processor_and_on_a_device(kind, monkeypatch):
    few = features(60, 3).mul(1.5).round()
    x = {"random": features(60, 8), "ties": few, "copies": few[torch.arange(60) // 4]}[kind]
    weights = [torch.ones(60), features(60, 1)[:, 0].abs(), torch.ones(60).cumsum(0) % 3]
    jobs = [(f, w, k) for f in (-1.0, 0.0, None) for w in weights for k in (1, 2, 23, 60)]

    def picks():
        likeness = cosines(x)
        return [
            (volume(likeness, w, k) if floor is None else cover(likeness.clone(), k, w, floor)).tolist()
            for floor, w, k in jobs
        ]

    here = picks()
    monkeypatch.setattr(greedy, "_cover_on_cpu", greedy._cover_on_device)
    monkeypatch.setattr(greedy, "_volume_on_cpu", greedy._volume_on_device)
    assert picks() == here


@pytest.mark.parametrize("look", [1, 2, 1000])
def test_how_many_are_looked_at_first_does_not_matter(look, monkeypatch):
    expected = cover(cosines(features(50)), 20).tolist()
    monkeypatch.setattr(greedy, "LOOK", look)
    assert cover(cosines(features(50)), 20).tolist() == expected


def test_marginal_by_hand():
    """Importance 1, 0.8, 0.5; 1 is nearly a copy of 0. Halves: second pick 0.4 - 0.45 or 0.25 - 0.1."""
    similarity = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, 0.2], [0.2, 0.2, 1.0]])
    importance = torch.tensor([1.0, 0.8, 0.5])
    assert marginal(similarity, importance, 3, 0.5).tolist() == [0, 2, 1]
    assert marginal(similarity, importance, 3, 0.9).tolist() == [0, 1, 2]
    assert marginal(similarity, importance, 3, 0.5, together=2).tolist() == [0, 1, 2]
    assert marginal(similarity, torch.zeros(3), 3, 0.0).tolist() == [0, 2, 1]


def test_apart_by_hand():
    """From 0: 3 is least like it. Then sums 1.0, 0.9 against largest 0.5, 0.8."""
    similarity = torch.tensor([[1.0, 0.5, 0.8, 0.0], [0.5, 1.0, 0.3, 0.5], [0.8, 0.3, 1.0, 0.1], [0.0, 0.5, 0.1, 1.0]])
    first = torch.tensor([0])
    assert apart(similarity, first, 4, total=True).tolist() == [0, 3, 2, 1]
    assert apart(similarity, first, 4, total=False).tolist() == [0, 3, 1, 2]


def test_apart_is_spread_from_its_first():
    likeness = cosines(features(30))
    picked = spread(likeness.clone(), 12)
    assert apart(likeness, picked[:1], 12, total=False).tolist() == picked.tolist()


def test_farthest_by_hand():
    """On a line at 0, 1, 5, 6, 20: from 5 the far end, then 0 at 5 away, then 1 and 6, each 1 away."""
    x = torch.tensor([0.0, 1, 5, 6, 20])[:, None]
    assert farthest(x, torch.tensor([2]), 5).tolist() == [2, 4, 0, 1, 3]
    assert farthest(torch.ones(3, 2), torch.tensor([1]), 3).tolist() == [1, 0, 2], "copies come once each"


def test_two_that_serve_each_other_are_a_tie():
    """Of a pair nobody else is like, either serves both alike: the first is picked, whatever rounding says."""
    for seed in range(50):
        turned = torch.linalg.qr(features(24, 24, seed)).Q[:8] * (1 + features(8, 1, seed).abs())
        turned[5] = turned[2] + 0.4 * turned[5]
        picked = cover(cosines(turned), 2).tolist()
        assert picked[0] == 2
