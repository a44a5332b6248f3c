import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.fopru import FoPru
from foveate.tokens import Extra, View

# Row means 0.2, 0.3, 0.25; the single best token is in the row that is worst.
SCORE = torch.tensor([0.5, 0.05, 0.05, 0.3, 0.2, 0.4, 0.25, 0.25, 0.25])


def view(k: int) -> View:
    return View.on_grid(
        torch.zeros(9, 1), k, 3, 3, extras={"attention": Extra(torch.stack([SCORE - 0.01, SCORE + 0.01]))}
    )


@pytest.mark.parametrize(("k", "kept"), [(1, [0]), (3, [0, 3, 5]), (6, [0, 3, 5, 6, 7, 8])])
def test_rank(k, kept):
    assert FoPru()(view(k)).anchor.tolist() == kept


@pytest.mark.parametrize(
    ("k", "kept"),
    [(3, [3, 4, 5]), (5, [3, 4, 5]), (6, [3, 4, 5, 6, 7, 8]), (9, list(range(9))), (2, [3, 5]), (1, [5])],
)
def test_row(k, kept):
    """Whole rows by their mean, never more than k tokens; less than a row is the best of the best row."""
    assert FoPru(strategy="row")(view(k)).anchor.tolist() == kept


def test_scattered_tokens_or_complete_rows():
    """At one budget, and both in raster order."""
    rank, row = (FoPru(strategy=strategy)(view(3)).anchor for strategy in ("rank", "row"))
    assert len(rank) == len(row) == 3
    assert len((rank // 3).unique()) == 2 and len((row // 3).unique()) == 1
    assert rank.tolist() == sorted(rank.tolist()) and row.tolist() == sorted(row.tolist())


def test_every_tile_spends_on_its_own_rows():
    """Two tiles of two rows: the budget of four is one row each, although both rows of the second are better."""
    score = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.9, 0.9, 0.8, 0.8])
    tile, row, col = torch.tensor([(t, r, c) for t in range(2) for r in range(2) for c in range(2)]).T
    one = View(torch.zeros(8, 1), 4, tile=tile, row=row, col=col, extras={"attention": Extra(score[None])})
    assert FoPru(strategy="row")(one).anchor.tolist() == [2, 3, 4, 5]


def test_only_ranks_are_exact():
    assert FoPru.card.count == FoPru().card.count == "fixed"
    assert FoPru(strategy="row").card.count == "grid"


def test_strategy_is_checked():
    with pytest.raises(PlanError, match="strategy"):
        Plan.of("fopru:keep=3,strategy=column")
