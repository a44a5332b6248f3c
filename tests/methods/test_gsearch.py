import pytest
import torch

from foveate.errors import MethodError
from foveate.methods.gsearch import GSearch, tokens
from foveate.parts.pace import bisect
from foveate.plan import Plan
from foveate.tokens import Extra, View

ROWS = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2]], [[0.1, 0.2, 0.5, 0.2], [0.6, 0.1, 0.3, 0.0]]])


def view(layer: int, k: int = 2, depth: int = 4, n: int = 4, entered: int = 4) -> View:
    rows = ROWS[..., :n]
    return View(torch.zeros(n, 2), k, extras={"text_rows": Extra(rows, 0)}, layer=layer, depth=depth, entered=entered)


def test_mean_over_heads_and_text_or_its_last_token():
    torch.testing.assert_close(GSearch().score(view(1)), torch.tensor([0.3, 0.15, 0.35, 0.2]))
    torch.testing.assert_close(GSearch(rows="last").score(view(1)), torch.tensor([0.5, 0.1, 0.3, 0.1]))
    assert GSearch()(view(3)).anchor.tolist() == [2]
    assert GSearch(rows="last")(view(3)).anchor.tolist() == [0]


def test_shares_are_of_the_tokens_that_entered():
    method = GSearch(shares=(1.0, 0.75, 0.5, 0.0))
    assert method.lengths(4, 4, 4) == [4, 3, 2, 0]
    assert method(view(1)).anchor.tolist() == [0, 2, 3]
    assert method(view(2, n=3)).anchor.tolist() == [0, 2], "half of the four that entered, of three that are left"
    assert method(view(3, n=2)).m == 0
    assert GSearch(shares=(1.0, 1.0, 1.0, 0.5))(view(2)) is None


def test_counts_are_rounded_up_and_never_rise():
    assert tokens((1, 0.5, 0.3, 0.01, 0), 10) == [10, 5, 3, 1, 0]
    assert tokens((0.2, 0.5), 10) == [2, 2]


@pytest.mark.parametrize("n", [1, 7, 36, 576])
def test_without_a_search_a_line_meets_the_mean(n):
    for k in sorted({1, max(1, n // 9), max(1, n // 3), n}):
        counts = GSearch().lengths(n, k, 32)
        assert counts[0] == n and counts == sorted(counts, reverse=True) and counts[-1] >= 1
        assert sum(counts) <= max(32 * k, n + 31)
        if 32 * k > n + 31:
            assert sum(counts) / 32 == pytest.approx(k, abs=1)
    assert GSearch().lengths(40, 20, 4) == [40, 26, 13, 1]


def test_a_schedule_needs_no_budget_and_its_model():
    plan = Plan.of("gsearch:shares=(1.0,0.5,0.25)")
    assert plan.steps[0].keep is None and list(plan.steps[0].method.stops(3)) == [1, 2]
    with pytest.raises(MethodError, match="4 layers"):
        plan.steps[0].method.stops(4)


@pytest.mark.parametrize("shares", [(0.5,), (1.0, 0.2, 0.3), (1.0, -0.1), (1.0, "x"), (1.0, True), "1"])
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ValueError, match="shares"):
        GSearch(shares=shares)


def test_every_layer_but_the_first_is_a_stop():
    assert list(GSearch().stops(5)) == [1, 2, 3, 4]
    assert GSearch()(view(0)) is None
    with pytest.raises(ValueError, match="rows"):
        GSearch(rows="some")


def test_bisection_finds_the_largest_that_fits():
    assert bisect(lambda x: x * x, 2.0, 0.0, 9.0) == pytest.approx(2**0.5)
    assert bisect(lambda x: x, 2.0, 0.0, 1.0) == 1.0
    assert bisect(lambda x: x, -2.0, 0.0, 1.0) == pytest.approx(0.0)
