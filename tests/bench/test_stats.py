"""Intervals and paired tests, against numbers that can be checked by hand or in a table."""

import pytest

from foveate.bench.stats import accuracy, mcnemar, paired, wilson


def test_wilson_against_known_values():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_accuracy_counts():
    row = accuracy([True, False, True, True])
    assert (row["n"], row["right"], row["accuracy"]) == (4, 3, 0.75)
    assert row["low"] < 0.75 < row["high"]


def test_mcnemar_is_the_exact_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(3, 3) == 1.0


def test_mcnemar_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in [(2, 9), (0, 4), (13, 12)]:
        assert mcnemar(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)


def test_paired_counts_and_covers():
    reference = [True] * 80 + [False] * 20
    run = [True] * 70 + [False] * 10 + [True] * 4 + [False] * 16
    found = paired(run, reference)
    assert (found["gained"], found["lost"]) == (4, 10)
    assert found["difference"] == pytest.approx(-0.06)
    assert found["low"] < -0.06 < found["high"]
    assert found["same"] == pytest.approx(0.86)
    assert paired(run, reference) == found, "a fixed seed"


def test_paired_equal_runs_differ_by_nothing():
    found = paired([True, False], [True, False])
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_paired_refuses_other_samples():
    with pytest.raises(ValueError, match="same samples"):
        paired([True], [True, False])
