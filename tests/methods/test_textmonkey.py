import math

import torch

from foveate.methods.textmonkey import TextMonkey
from foveate.parts.similarity import cosines, nearest_later
from foveate.tokens import View


def at(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def test_by_hand():
    """Nearest later token: 0 -> 10 (10 degrees off), 60 -> 50 (10), 10 -> 50 (40), 50 -> 120 (70), 120 has none."""
    x = at(0, 60, 10, 50, 120)
    expected = torch.tensor([10.0, 10, 40, 70]).deg2rad().cos()
    torch.testing.assert_close(nearest_later(x)[:4], expected)
    assert TextMonkey()(View(x, 3)).anchor.tolist() == [2, 3, 4]
    assert TextMonkey()(View(x, 1)).anchor.tolist() == [4]


def test_of_copies_the_last_stays():
    x = at(0, 90, 0, 90, 200)
    assert TextMonkey()(View(x, 3)).anchor.tolist() == [2, 3, 4]


def test_blocks_change_nothing():
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(0))
    x[7] = x[33] = 0  # copies of one another
    whole = cosines(x).masked_fill(torch.ones(70, 70, dtype=torch.bool).tril(), -torch.inf).amax(1)
    for rows in (1, 16, 69, 70, 100):
        torch.testing.assert_close(nearest_later(x, rows), whole)


def test_one_token():
    assert TextMonkey()(View(torch.ones(1, 2), 1)).anchor.tolist() == [0]
