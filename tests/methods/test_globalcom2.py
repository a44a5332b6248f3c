import math

import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.globalcom2 import GlobalCom2
from foveate.tokens import Extra, View


def tiled(cols: int, side: int, k: int, overview: list[float], tiles: list[list[float]]) -> View:
    """An overview of side x side and a row of tiles, each given by the logits of its tokens in raster order."""
    places = [(0, r, c) for r in range(side) for c in range(side)]
    places += [(1 + x // side, y, x % side) for y in range(side) for x in range(cols * side)]
    tile, row, col = torch.tensor(places).T
    logit = torch.tensor([[*overview, *(tiles[t - 1][r * side + c] for t, r, c in places[side**2 :])]])
    extras = {"attention": Extra((logit - 9).exp())}  # a constant changes nothing that matters
    return View(torch.zeros(len(places), 1), k, tile=tile, row=row, col=col, extras=extras)


UP = 5 * math.log(3)  # two of it over a temperature of 10 are log 3


def test_budgets():
    """Left sum 2 UP, right sum 0: a softmax of 3/4 and 1/4, so ratios of 1 1/4 and 3/4 times the overview's 2/3.

    The overview keeps 4 * 8 // 12 = 2; six are left, 3.75 and 2.25 of them.
    """
    view = tiled(2, 2, 8, [UP, 0, UP, 0], [[0.0] * 4] * 2)
    assert GlobalCom2().budgets(view) == [2, 4, 2]
    assert GlobalCom2().budgets(tiled(2, 2, 8, [0, UP, 0, UP], [[0.0] * 4] * 2)) == [2, 2, 4]
    assert GlobalCom2().budgets(tiled(2, 2, 8, [1.0] * 4, [[0.0] * 4] * 2)) == [2, 3, 3]
    assert GlobalCom2(temperature=1000.0).budgets(view) == [2, 3, 3]


def test_the_overview_steers_what_stays_in_a_tile():
    """One tile, the whole picture again, twice as fine.

    Logits of the tile, tokens in raster order: 1 at 0, 2 at 15, 0 elsewhere; their length is the root of 5. The overview
    sees nothing but its lower right, and bilinear between its four tokens that is 1 at token 15 and 0 at token 0.
    """
    tile = [0.0] * 16
    tile[0], tile[15] = 1.0, 2.0
    places = [(0, r, c) for r in range(2) for c in range(2)] + [(1, r, c) for r in range(4) for c in range(4)]
    at, row, col = torch.tensor(places).T
    attention = torch.tensor([[0.0, 0.0, 0.0, 1.0, *tile]]).exp()
    boxes = torch.tensor([[0, 0, 1, 1.0], [0, 0, 1, 1.0]])
    extras = {"attention": Extra(attention), "boxes": Extra(boxes)}
    view = View(torch.zeros(20, 1), 2, tile=at, row=row, col=col, extras=extras)
    budgets, score = GlobalCom2()._plan(view)
    assert budgets == [0, 2]
    guide = torch.tensor([0, 0.25, 0.75, 1]).outer(torch.tensor([0, 0.25, 0.75, 1])).flatten()
    torch.testing.assert_close(score[4:], torch.tensor(tile) / math.sqrt(5) + guide / guide.norm())
    assert GlobalCom2()(view).anchor.tolist() == [4 + 11, 4 + 15], "by the tile alone: 0 and 15"


def test_ratios_differ_and_average_to_the_one_asked_for():
    draw = torch.Generator().manual_seed(0)
    n = 5 * 36
    tile = torch.arange(n) // 36
    place = torch.arange(n) % 36
    attention = torch.randn(4, n, generator=draw)
    attention[:, 30:36] += 5  # in the last row of the overview, which the last of four tiles in a column shows
    extras = {"attention": Extra(attention.softmax(1))}
    view = View(torch.zeros(n, 1), n // 4, tile=tile, row=place // 6, col=place % 6, extras=extras)
    budgets = GlobalCom2().budgets(view)
    kept = GlobalCom2()(view).anchor
    assert sum(budgets) == n // 4 and budgets[0] == 9
    assert torch.bincount(tile[kept]).tolist() == budgets
    assert max(budgets[1:]) == budgets[4] > min(budgets[1:])


def test_without_tiles_the_highest_stay():
    view = View(torch.zeros(4, 1), 2, extras={"attention": Extra(torch.tensor([[0.1, 0.5, 0.2, 0.4]]))})
    assert GlobalCom2()(view).anchor.tolist() == [1, 3]


@pytest.mark.parametrize("value", [0, -1, "inf"])
def test_temperature_is_checked(value):
    with pytest.raises(PlanError, match="temperature"):
        Plan.of(f"globalcom2:keep=2,temperature={value}")
