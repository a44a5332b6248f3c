import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.prumerge import PruMerge, nearest_each
from foveate.tokens import Extra, View

X = torch.tensor([[1.0], [10.0], [100.0], [1000.0], [10000.0]])
ATTENTION = torch.tensor([[0.1, 0.4, 0.2, 0.5, 0.3]])
KEYS = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [1.0, 1.0]])


def view(k: int) -> View:
    return View(X, k, extras={"attention": Extra(ATTENTION), "keys": Extra(KEYS)})


def test_plus_weighted_neighbours_and_one_for_the_rest():
    """Kept: 3 and 1. By keys 2 is nearest to 3, and 0 to 1. The rest is 0, 2 and 4; 4 is its strongest."""
    reduction = PruMerge(neighbours=1)(view(3)).check()
    assert reduction.anchor.tolist() == [1, 3, 4]
    rest = 0.1 * 1 + 0.2 * 100 + 0.3 * 10000
    torch.testing.assert_close(reduction.apply(X)[:, 0], torch.tensor([10 + 0.1 * 1, 1000 + 0.2 * 100, rest]))


def test_neighbours_may_be_kept_tokens():
    reduction = PruMerge(neighbours=4)(view(3))
    everything = float((ATTENTION[0] * X[:, 0]).sum())
    expected = torch.tensor([10 + everything - 0.4 * 10, 1000 + everything - 0.5 * 1000])
    torch.testing.assert_close(reduction.apply(X)[:2, 0], expected)


def test_a_budget_of_one_has_no_rest():
    reduction = PruMerge(neighbours=0)(view(1))
    assert reduction.anchor.tolist() == [3] and reduction.apply(X).tolist() == [[1000.0]]


def wide(k: int) -> View:
    """Hundred tokens, of which 50 and 70 stand out; two thirds of an outlier's distance is not enough for 90."""
    attention = torch.linspace(0.1, 0.2, 100)
    attention[50] = attention[70] = 1.0
    attention[90] = 0.2
    draw = torch.Generator().manual_seed(0)
    extras = {"attention": Extra(attention[None]), "keys": Extra(torch.randn(100, 4, generator=draw))}
    return View(torch.randn(100, 4, generator=draw), k, extras=extras)


def test_adaptive_number_of_outliers():
    """Quartiles 0.125 and 0.175 or so: only what is above 0.25 is an outlier; the rest makes the third token."""
    method = PruMerge(adaptive=True)
    assert method(wide(40)).m == 3
    assert method(wide(2)).m == 2, "never more than the budget"
    assert set(method(wide(40)).anchor.tolist()) >= {50, 70}
    assert PruMerge.card.count == PruMerge().card.count == "fixed"
    assert method.card.count == "content"


def test_adaptive_plus():
    """Two outliers of a hundred: every (100 // 2) // 3 = 16th token is kept beside them, 7 of them, none twice."""
    reduction = PruMerge(plus=True, adaptive=True)(wide(60))
    kept = set(reduction.anchor.tolist())
    assert reduction.m == 2 + 7 + 1
    assert kept >= {0, 16, 32, 48, 64, 80, 96, 50, 70}
    few = PruMerge(plus=True, adaptive=True)(wide(6))
    assert few.m == 6 and set(few.anchor.tolist()) >= {50, 70}


@pytest.mark.parametrize("k", [1, 2, 9, 40, 99, 100])
def test_plus_with_a_budget(k):
    """A quarter of them outliers, three quarters spread over the picture."""
    reduction = PruMerge(plus=True)(wide(k))
    assert reduction.m == k
    if k == 40:
        assert max(reduction.anchor.diff().tolist()) <= 8


def test_ties_go_to_the_lowest_index():
    rows = torch.eye(3)[torch.tensor([0, 1, 0, 0, 2, 0, 1])]
    place, row = nearest_each(rows, torch.tensor([2, 6]), 2)
    assert place.tolist() == [0, 0, 1, 1]
    assert row.tolist() == [0, 3, 0, 1]


@pytest.mark.parametrize("value", [-1])
def test_neighbours_are_checked(value):
    with pytest.raises(PlanError, match="neighbours"):
        Plan.of(f"prumerge:keep=2,neighbours={value}")
