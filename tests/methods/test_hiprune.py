import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.hiprune import HiPrune, beside
from foveate.tokens import Extra, View


def view(k: int, anchor: int = 5, side: int = 4) -> View:
    """On a 4 x 4 grid: late attention falls with the index; the middle layer has one object, and less to its right."""
    n = side * side
    late, early = torch.linspace(1, 0, n), torch.zeros(n)
    early[anchor] = 1.0
    early[(anchor + 1) % n] = 0.5
    return View.on_grid(
        torch.zeros(n, 1), k, side, side, extras={"attention": Extra(late[None]), "early": Extra(early[None])}
    )


def test_anchor_buffers_registers():
    """round(0.5 * 8 / 5) = 1 anchor, 5, with 1, 4, 6 and 9; three registers by late attention: 0, 2, 3."""
    assert HiPrune(alpha=0.5)(view(8)).anchor.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize(
    ("anchor", "buffers"), [(0, [1, 4]), (3, [2, 7]), (4, [0, 5, 8]), (7, [3, 6, 11]), (12, [8, 13]), (15, [11, 14])]
)
def test_no_neighbours_round_the_corner(anchor, buffers):
    assert beside(view(1), torch.tensor([anchor])).tolist() == buffers


def test_no_neighbours_in_another_tile():
    tile, row, col = torch.tensor([(t, r, c) for t in range(2) for r in range(2) for c in range(2)]).T
    one = View(torch.zeros(8, 1), 1, tile=tile, row=row, col=col)
    assert beside(one, torch.tensor([2])).tolist() == [0, 3]
    assert beside(one, torch.tensor([4, 7])).tolist() == [5, 6]


def test_more_anchors_and_buffers_than_budget():
    """The anchor first, then the buffers the middle layer likes best."""
    assert HiPrune(alpha=1.0)(view(3)).anchor.tolist() == [1, 5, 6]


@pytest.mark.parametrize(("k", "alpha", "anchors"), [(64, 0.1, 1), (8, 0.1, 0), (8, 0.0, 0), (16, 1.0, 3)])
def test_number_of_anchors(k, alpha, anchors):
    """round(alpha k / 5): where it is none, all are registers."""
    n = 144
    late, early = torch.linspace(1, 0, n), torch.zeros(n)
    early[[100, 126, 76]] = torch.tensor([3.0, 2.0, 1.0])
    extras = {"attention": Extra(late[None]), "early": Extra(early[None])}
    kept = HiPrune(alpha=alpha)(View.on_grid(torch.zeros(n, 1), k, 12, 12, extras=extras)).anchor.tolist()
    assert len(kept) == k
    assert sum(a in kept for a in (100, 126, 76)) == anchors


@pytest.mark.parametrize("option", ["alpha=1.5", "early=1.0", "early=-0.5"])
def test_options_are_checked(option):
    with pytest.raises(PlanError, match=option.split("=")[0]):
        Plan.of(f"hiprune:keep=2,{option}")
