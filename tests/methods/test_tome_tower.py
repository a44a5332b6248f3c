import math

import pytest
import torch

from foveate.methods.tome_tower import ToMeTower
from foveate.tokens import Extra, View


def at(degrees: list[float], k: int, left: int, **more) -> View:
    keys = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])
    return View(torch.zeros(len(keys), 3), k, extras={"keys": Extra(keys)}, left=left, **more)


def test_one_stop_by_hand():
    """Keys, not features. Two of five must go in two stops: one now, the pair at 5 degrees."""
    reduction = ToMeTower()(at([0, 5, 60, 80, 120], 3, 1))
    assert reduction.anchor.tolist() == [1, 2, 3, 4]
    x = torch.randn(5, 3)
    torch.testing.assert_close(reduction.apply(x), torch.stack([(x[0] + x[1]) / 2, x[2], x[3], x[4]]))
    assert ToMeTower()(at([0, 5, 60, 80, 120], 3, 0)).anchor.tolist() == [1, 3, 4]


def test_merged_tokens_weigh_by_size():
    reduction = ToMeTower()(at([0, 5, 60], 2, 0, size=torch.tensor([3.0, 1.0, 1.0])))
    x = torch.randn(3, 3)
    torch.testing.assert_close(reduction.apply(x)[0], (3 * x[0] + x[1]) / 4)
    assert reduction.sizes(torch.tensor([3.0, 1.0, 1.0])).tolist() == [4, 1]


def test_equal_shares():
    """576 to 64 in 22 stops: 23 or 24 at each, the larger number first."""
    n, gone = 576, []
    for left in reversed(range(22)):
        reduction = ToMeTower()(at([i * 0.61 for i in range(n)], 64, left))
        gone.append(n - reduction.m)
        n = reduction.m
    assert n == 64 and gone == [24] * 6 + [23] * 16


def test_more_than_half_in_the_last_stop():
    reduction = ToMeTower()(at([7.0 * i for i in range(40)], 3, 0))
    assert reduction.m == 3 and sorted(reduction.src.tolist()) == list(range(40))


def test_where_it_merges():
    assert list(ToMeTower().stops(23)) == list(range(1, 23))
    assert list(ToMeTower(first=0.5).stops(23)) == list(range(12, 23))
    assert ToMeTower().weighs and not ToMeTower(proportional=False).weighs
    for first in (-0.1, 1.0):
        with pytest.raises(ValueError, match="first"):
            ToMeTower(first=first)
