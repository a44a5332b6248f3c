import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import MethodError
from foveate.parts import select
from foveate.parts.select import evenly, spread, top


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 40))
def test_top_is_a_stable_sort(scores, k):
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top(torch.tensor(scores, dtype=torch.float32), k).tolist() == sorted(best)


def test_top_takes_infinities_and_refuses_nan():
    assert top(torch.tensor([0.0, -torch.inf, torch.inf]), 2).tolist() == [0, 2]
    with pytest.raises(MethodError, match="1 of 3 scores are NaN"):
        top(torch.tensor([0.0, torch.nan, 1.0]), 2)


@given(st.integers(1, 300), st.data())
def test_evenly(n, data):
    k = data.draw(st.integers(1, n))
    index = evenly(n, k)
    assert len(index) == k and index[0] >= 0 and index[-1] < n
    gaps = index.diff()
    assert not len(gaps) or (gaps.min() >= max(1, n // k) and gaps.max() <= -(-n // k))
    assert abs(int(index[0]) - (n - 1 - int(index[-1]))) <= 1, "as far from the start as from the end"


@given(st.integers(1, 25), st.integers(0, 5))
def test_spread_picks_everything_once(n, seed):
    x = torch.randint(-1, 2, (n, 3), generator=torch.Generator().manual_seed(seed)).float()
    assert sorted(spread(x @ x.T, n).tolist()) == list(range(n))
    assert spread(torch.ones(n, n), n).tolist() == list(range(n)), "ties go to the lowest index"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["random", "ties", "copies"])
def test_spread_is_the_same_on_the_processor_and_on_a_device(kind, dtype):
    draw = torch.Generator().manual_seed(0)
    few = torch.randint(-1, 2, (40, 3), generator=draw).float()
    x = {"random": torch.randn(40, 8, generator=draw), "ties": few, "copies": few[torch.arange(40) // 4]}[kind]
    likeness = (x @ x.T).to(dtype)
    for k in (1, 2, 17, 40):
        one = likeness.clone()
        first = one.fill_diagonal_(-torch.inf).amax(1).argmin(dim=0, keepdim=True)
        one.fill_diagonal_(torch.inf)
        here, there = select._spread_on_cpu(one, first, k), select._spread_on_device(one, first, k)
        assert torch.equal(here, there) and here.dtype == there.dtype == torch.long
        assert torch.equal(spread(likeness.clone(), k), here)
