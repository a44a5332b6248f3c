import math

import torch

from foveate.methods.divprune import DivPrune
from foveate.tokens import View


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors at these angles: the cosine distance grows with the angle between them."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def test_max_min_by_hand():
    """Angles to the nearest other: 10, 10, 35, 35, 60. The loneliest is the last; then whoever is farthest from all."""
    x = at(0, 10, 45, 80, 140)
    assert DivPrune().order(View(x, 5)).tolist() == [4, 0, 3, 2, 1]
    # from 140: 0 is 140 away. Then 80 is 60 from its nearest, 45 is 45. Then 45 is 35 away, 10 is 10.
    assert DivPrune()(View(x, 3)).anchor.tolist() == [0, 3, 4]


def test_length_does_not_matter():
    x = at(0, 10, 45, 80, 140) * torch.tensor([[5.0], [0.1], [1.0], [30.0], [2.0]])
    assert DivPrune().order(View(x, 5)).tolist() == [4, 0, 3, 2, 1]


def test_no_token_twice():
    """Two distinct rows, four asked for. The authors' code answers one index again and again."""
    x = at(0, 90, 0, 90, 0, 90)
    picked = DivPrune().order(View(x, 4)).tolist()
    assert len(set(picked)) == 4 and sorted(i % 2 for i in picked[:2]) == [0, 1]


def test_rows_of_zeros_are_copies_of_each_other():
    """The authors' code answers NaN distances and then token 0 for ever."""
    x = torch.cat([torch.zeros(3, 2), at(0, 30, 60)])
    picked = DivPrune().order(View(x, 6)).tolist()
    assert sorted(picked) == list(range(6))
    assert sum(i < 3 for i in picked[:4]) == 1, "one of the zeros, then all that differ, then the other zeros"


def test_is_the_plain_algorithm():
    """The definition, written down without any thought of speed."""
    x = torch.randn(60, 8, dtype=torch.float64)
    distance = 1 - torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    picked = [int((distance + torch.eye(60) * 9).amin(0).argmax())]
    while len(picked) < 25:
        nearest = distance[picked].amin(0)
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    assert DivPrune().order(View(x, 25)).tolist() == picked


def test_kept_tokens_are_further_apart_than_random_ones():
    """The smallest cosine distance between kept tokens, against twenty random subsets of the same size."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(200, 16, generator=draw)
    unit = torch.nn.functional.normalize(x, dim=1)

    def nearest(kept: torch.Tensor) -> float:
        return (1 - unit[kept] @ unit[kept].mT).fill_diagonal_(torch.inf).min().item()

    ours = nearest(DivPrune()(View(x, 20)).anchor)
    assert all(ours > nearest(torch.randperm(200, generator=draw)[:20]) for _ in range(20))
