"""Bounds that may be looked at after every sample: exact on small cases, and how often they fail and decide in simulations."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from foveate.bench.advice.sequential import bounds, log_capital, needed
from foveate.bench.stats import wilson

CHANGES = (-1, 0, 1)
RUNS, LOOKS, BLOCK = 600, 40, 16


def allowed(rate: float, runs: int = RUNS) -> float:
    """Failures that a rate of at most this explains, but for one simulation in ten thousand."""
    return runs * rate + 3.8 * math.sqrt(runs * rate * (1 - rate))


def paths(shares, runs=RUNS, seed=0):
    """(runs, looks, 3) counts of answers gained, as before and lost, at each look."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(BLOCK, shares, size=(runs, LOOKS)).cumsum(1)


def accepted(counts, limit, alpha):
    """Whether a drop above ``limit`` is ruled out: what bounds() does at its upper end, without the bisection."""
    return log_capital(counts, (1, 0.5, 0), (1 - limit) / 2) >= math.log(1 / alpha)


@pytest.mark.parametrize("shares", [(0.1, 0.7, 0.2), (0.0, 0.9, 0.1), (0.3, 0.0, 0.7)])
def test_the_capital_of_a_fair_bet_keeps_its_mean(shares):
    """Exactly 1 at any number of samples, if the mean is the one that was bet against: all that Ville's inequality needs."""
    values = (1, 0.5, 0)
    mean = sum(share * value for share, value in zip(shares, values, strict=True))
    for n in (1, 2, 5):
        total = 0.0
        for counts in itertools.product(range(n + 1), repeat=3):
            if sum(counts) == n:
                ways = math.factorial(n) / math.prod(map(math.factorial, counts))
                chance = ways * math.prod(share**count for share, count in zip(shares, counts, strict=True))
                total += chance * math.exp(log_capital(counts, values, mean))
        assert total == pytest.approx(1, abs=1e-9)


def test_bounds_enclose_the_mean_and_tighten():
    widths = []
    for n in (10, 100, 1000):
        low, high = bounds([n // 10, n // 2, n - n // 10 - n // 2], CHANGES, 0.05)
        mean = (n - n // 10 - n // 2 - n // 10) / n
        assert -1 <= low < mean < high <= 1
        widths.append(high - low)
        wider = bounds([n // 10, n // 2, n - n // 10 - n // 2], CHANGES, 0.005)
        assert wider[0] < low and high < wider[1]
    assert widths == sorted(widths, reverse=True)


def test_nothing_is_known_before_the_first_sample():
    assert bounds([0, 0, 0], CHANGES, 0.05) == pytest.approx((-1, 1), abs=1e-9)


def test_bounds_turn_with_the_sign():
    low, high = bounds([7, 80, 13], CHANGES, 0.05)
    assert bounds([13, 80, 7], CHANGES, 0.05) == pytest.approx((-high, -low), abs=1e-9)


def test_bounds_are_where_the_capital_is_enough():
    counts, alpha = [2, 150, 9], 0.01
    _, high = bounds(counts, CHANGES, alpha)
    assert not accepted(counts, high - 1e-6, alpha) and accepted(counts, high + 1e-6, alpha)


@pytest.mark.parametrize(
    ("shares", "limit"), [((0.02, 0.95, 0.03), 0.01), ((0.0, 0.97, 0.03), 0.03), ((0.1, 0.7, 0.2), 0.1)]
)
def test_a_plan_that_loses_just_too_much_is_seldom_accepted_at_any_look(shares, limit):
    wrong = sum(any(accepted(counts, limit, 0.05) for counts in path) for path in paths(shares))
    assert wrong <= allowed(0.05)


def test_an_interval_for_one_look_would_be_wrong_more_often():
    """The simulation can fail: with Wilson's one-sided 95 % at every look it does."""
    wrong = 0
    for path in paths((0.0, 0.97, 0.03)):
        wrong += any(wilson(int(lost), BLOCK * (i + 1), 1.645)[1] <= 0.03 for i, (_, _, lost) in enumerate(path))
    assert wrong > allowed(0.05)


def test_alpha_shared_out_over_plans_is_that_of_all_together():
    plans, runs = 8, 150
    wrong = 0
    for seed in range(runs):
        tried = paths((0.0, 0.97, 0.03), plans, seed)
        wrong += any(accepted(counts, 0.03, 0.05 / plans) for path in tried for counts in path)
    assert wrong <= allowed(0.05, runs)


def test_a_plan_that_loses_nothing_is_found_out():
    """2 % of answers change, as many to the better: a limit of 3 points is decided within 640 samples, nearly always."""
    found = [
        next((i for i, c in enumerate(path) if accepted(c, 0.03, 0.05)), LOOKS)
        for path in paths((0.01, 0.98, 0.01), 200)
    ]
    assert sum(i < LOOKS for i in found) >= 190
    assert BLOCK * (np.median(found) + 1) <= 320


def test_a_plan_that_loses_much_is_found_out():
    rejected = [bounds(path[14], CHANGES, 0.05)[0] > 0.03 for path in paths((0.01, 0.84, 0.15), 50)]
    assert sum(rejected) >= 45


@pytest.mark.parametrize(("counts", "limit"), [((3, 94, 3), 0.02), ((2, 80, 18), 0.1), ((0, 40, 0), 0.01)])
def test_samples_needed_are_those_at_which_a_bound_passes(counts, limit):
    total = needed(counts, CHANGES, limit, 0.05)
    for share, decided in ((1.02, True), (0.95, False)):
        low, high = bounds([count * share * total / sum(counts) for count in counts], CHANGES, 0.05)
        assert (high <= limit or low > limit) is decided


def test_samples_needed_where_nobody_can_tell():
    assert needed((0, 0, 0), CHANGES, 0.02, 0.05) is None
    assert needed((0, 98, 2), CHANGES, 0.02, 0.05) is None
    assert needed((300_000, 390_000, 310_000), CHANGES, 0.0101, 0.05) is None


def test_the_numbers_of_samples_in_the_documentation():
    """Table of docs/advise.md: share of answers that change, half of them to the better, and samples at each limit."""
    lines = (Path(__file__).parents[2] / "docs" / "advise.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| answers that change"))
    limits = [float(word) / 100 for word in re.findall(r"(\d+)pt", lines[start])]
    assert limits == [0.05, 0.03, 0.02, 0.01]
    rows = lines[start + 2 : start + 7]
    assert len(rows) == 5 and lines[start + 7] == ""
    for line in rows:
        change, *given = (float(word) for word in re.findall(r"[\d.]+", line))
        share = change / 100
        counts = [share / 2 * 1e4, (1 - share) * 1e4, share / 2 * 1e4]
        found = [needed(counts, CHANGES, limit, 0.05) for limit in limits]
        assert given == [float(f"{n:.2g}") for n in found]
        assert 1.55 < needed(counts, CHANGES, 0.02, 0.05 / 18) / needed(counts, CHANGES, 0.02, 0.05) < 1.8
    assert 0.99**298 > 0.05 > 0.99**299
