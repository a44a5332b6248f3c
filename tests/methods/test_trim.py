import torch

from foveate import Plan
from foveate.methods.trim import TRIM
from foveate.tokens import Extra, View

X = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])


def view(k: int, relevance: list[float]) -> View:
    return View(X, k, extras={"relevance": Extra(torch.tensor(relevance))})


def test_the_most_relevant_and_the_mean_of_the_others():
    """Tokens 1 and 3 stay; 0, 2 and 4 make one token, at the place of the last of them."""
    reduction = TRIM()(view(3, [0.1, 0.9, 0.2, 0.8, 0.0]))
    assert reduction.anchor.tolist() == [1, 3, 4]
    torch.testing.assert_close(reduction.apply(X)[:, 0], torch.tensor([2.0, 8.0, (1 + 4 + 16) / 3]))


def test_smallest_and_largest_budget():
    torch.testing.assert_close(TRIM()(view(1, [0.1, 0.9, 0.2, 0.8, 0.0])).apply(X), torch.tensor([[31 / 5]]))
    assert TRIM()(view(5, [0.1, 0.9, 0.2, 0.8, 0.0])).is_drop


def test_outliers_decide():
    """Shares of a softmax: four equal, one far above; the quartiles are equal, so the fence lies at them."""
    method = TRIM(adaptive=True)
    assert method.card.count == "content" and TRIM().card.count == "fixed"
    assert method(view(4, [0.0, 0.0, 3.0, 0.0, 0.0])).anchor.tolist() == [2, 4]
    assert method(view(4, [0.0, 0.0, 0.0, 0.0, 0.0])).anchor.tolist() == [4], "no outlier: the mean alone"
    assert method(view(1, [0.0, 0.0, 3.0, 0.0, 0.0])).m == 1, "never more than the budget"
    assert Plan.of("trim:keep=9,adaptive=true").steps[0].method == method


def test_softmax_makes_outliers():
    """0 to 4 in even steps has none; their exponentials do: e^4 is above the fence."""
    assert TRIM(adaptive=True)(view(5, [0.0, 1.0, 2.0, 3.0, 4.0])).anchor.tolist() == [3, 4]
