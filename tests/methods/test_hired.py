import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.hired import HiRED
from foveate.tokens import Extra, View


def tiled(rows: int, cols: int, side: int, k: int, early: torch.Tensor, late: torch.Tensor) -> View:
    """An overview of side x side, then rows x cols tiles in lines that run through them."""
    places = [(0, r, c) for r in range(side) for c in range(side)]
    for y in range(rows * side):
        places += [(1 + y // side * cols + x // side, y % side, x % side) for x in range(cols * side)]
    tile, row, col = torch.tensor(places).T
    seen = torch.zeros(1, len(places))
    seen[0, : side**2] = early
    extras = {"early": Extra(seen), "attention": Extra(late[None])}
    return View(torch.zeros(len(places), 1), k, tile=tile, row=row, col=col, extras=extras)


LATE = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.1, 0.2, 0.9, 0.8, 0.3, 0.4, 0.7, 0.6])
# Four of the overview, then two by turns of tile 1 (0.1 to 0.4) and tile 2 (0.6 to 0.9).


@pytest.mark.parametrize(
    ("early", "budgets", "kept"),
    [
        ([0.4, 0.1, 0.4, 0.1], [3, 3, 0], [0, 1, 2, 5, 8, 9]),  # both votes for the left tile
        ([0.4, 0.4, 0.1, 0.1], [3, 2, 1], [0, 1, 2, 6, 8, 9]),  # one each: 1.5 and 1.5, the first takes the odd one
        ([0.1, 0.4, 0.1, 0.4], [3, 0, 3], [0, 1, 2, 6, 7, 10]),
    ],
)
def test_votes_of_the_overview(early, budgets, kept):
    """Two tiles side by side. Six tokens: three for the overview, three by the votes of its best two by early attention."""
    view = tiled(1, 2, 2, 6, torch.tensor(early), LATE)
    assert HiRED().budgets(view) == budgets
    assert HiRED()(view).anchor.tolist() == kept


def test_a_full_tile_passes_on():
    """Ten tokens: five for the overview, which holds four; all six others to the left tile, which holds four."""
    view = tiled(1, 2, 2, 10, torch.tensor([0.4, 0.1, 0.4, 0.1]), LATE)
    assert HiRED().budgets(view) == [4, 4, 2]


@pytest.mark.parametrize("k", [1, 7, 50, 80])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_budgets_add_up_and_go_where_the_content_is(k, alpha):
    """Two by two tiles; what the overview attends to lies in its right lower quarter, which tile 4 shows."""
    early = torch.full((4, 4), 0.01)
    early[2:, 2:] = 1.0
    early[0, 0] = 0.5
    view = tiled(2, 2, 4, k, early.flatten(), torch.linspace(0, 1, 80))
    method = HiRED(alpha=alpha)
    budgets = method.budgets(view)
    kept = method(view).anchor
    assert sum(budgets) == k == len(kept)
    assert torch.bincount(view.tile[kept], minlength=5).tolist() == budgets
    if alpha == 0.5:  # other shares let more of the overview vote, or none
        assert budgets[4] == max(budgets[1:])


def test_one_tile_is_plain_attention():
    late = torch.tensor([[0.1, 0.5, 0.2, 0.4]])
    view = View(torch.zeros(4, 1), 2, extras={"attention": Extra(late), "early": Extra(late.flip(1))})
    assert HiRED()(view).anchor.tolist() == [1, 3]


@pytest.mark.parametrize("option", ["alpha=1.5", "alpha=-1", "early=1.0"])
def test_options_are_checked(option):
    with pytest.raises(PlanError, match=option.split("=")[0]):
        Plan.of(f"hired:keep=2,{option}")
