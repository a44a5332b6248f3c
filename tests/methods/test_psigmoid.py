import math

import pytest
import torch

from foveate.methods.psigmoid import PSigmoid, lowest
from foveate.tokens import Extra, View


def test_the_curve():
    shares = PSigmoid(steep=8.0).shares(0.5, 0.2, 4)
    assert shares[0] == 1
    for i in (1, 2, 3):
        assert shares[i] == pytest.approx(0.2 + 0.8 / (1 + math.exp(8 * (i / 4 - 0.5))))
    assert shares[2] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "method", [PSigmoid(), PSigmoid(steep=0.5), PSigmoid(steep=100.0), PSigmoid(low=0.05)], ids=str
)
@pytest.mark.parametrize("n", [1, 36, 576])
def test_the_middle_is_where_the_mean_is_the_budget(method, n):
    for k in sorted({1, max(1, n // 9), max(1, n // 3), max(1, 9 * n // 10), n}):
        counts = method.lengths(n, k, 32)
        assert counts[0] == n and counts == sorted(counts, reverse=True) and counts[-1] >= 1
        assert sum(counts) <= max(32 * k, n + 31)
        if 32 * k > n + 31:
            assert sum(counts) / 32 == pytest.approx(k, abs=1)


def test_steep_is_sudden_and_low_is_left():
    step = PSigmoid(steep=500.0).lengths(100, 50, 8)
    assert step == [100, 100, 100, 96, 1, 1, 1, 1]
    assert PSigmoid(steep=500.0, low=0.2).lengths(100, 50, 8)[-1] == 20
    gentle = PSigmoid(steep=0.1).lengths(100, 50, 8)
    assert max(gentle[1:]) - min(gentle[1:]) <= 2


def test_a_budget_may_lower_the_floor():
    assert lowest(100, 20, 5) == 0.0
    assert lowest(100, 40, 5) == 0.25
    assert PSigmoid(low=0.9).lengths(100, 40, 5) == [100, 25, 25, 25, 25]


def test_the_best_go_on():
    rows = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2]]])  # mean 0.25, 0.15, 0.30, 0.30
    view = View(torch.zeros(4, 2), 2, extras={"text_rows": Extra(rows, 0)}, layer=1, depth=4, entered=4)
    assert PSigmoid(steep=0.1).lengths(4, 2, 4) == [4, 2, 1, 1]
    assert PSigmoid(steep=0.1)(view).anchor.tolist() == [2, 3]


@pytest.mark.parametrize("options", [{"steep": 0.0}, {"steep": math.inf}, {"low": 1.1}, {"rows": "all"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=r"steep|low|rows"):
        PSigmoid(**options)
