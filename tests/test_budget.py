"""``keep`` in all its spellings."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.budget import SPLITS, Budget, nearest, share_out
from foveate.errors import KeepError

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=8)
splits = st.sampled_from(SPLITS)


@pytest.mark.parametrize(
    ("keep", "amount", "unit", "strict"),
    [
        (0.25, 0.25, "share", False),
        (1.0, 1.0, "share", False),
        (np.float32(0.5), 0.5, "share", False),
        (Fraction(1, 4), 0.25, "share", False),
        ("25%", 0.25, "share", False),
        (" 12.5 % ", 0.125, "share", False),
        ("100%", 1.0, "share", False),
        ("=25%", 0.25, "share", True),
        (64, 64, "image", False),
        (1, 1, "image", False),
        (np.int64(64), 64, "image", False),
        ("64/image", 64, "image", False),
        ("64 / image", 64, "image", False),
        ("2048/total", 2048, "total", False),
        ("16/frame", 16, "frame", False),
        ("=128/image", 128, "image", True),
        ("= 2048/total", 2048, "total", True),
        ("=16/frame", 16, "frame", True),
    ],
)
def test_spellings(keep, amount, unit, strict):
    assert Budget.parse(keep) == Budget(amount, unit, strict)


@pytest.mark.parametrize(
    "keep",
    [
        9.0, 0.0, -0.5, 1.0000001, float("nan"), float("inf"), 0, -3, True, False, None, "1", "0.25", "", "64", "0%", "101%",
        "-5%", "0/image", "1.5/image", "64/picture", "64/", "/image", "64/image/total", "==64/image", "64/Image", "25", "25%%",
        b"25%", [64], {}, 1j, "½", "²/image",
    ],
)  # fmt: skip
def test_errors_name_the_valid_forms(keep):
    with pytest.raises(KeepError) as caught:
        Budget.parse(keep)
    assert repr(keep) in str(caught.value)
    assert all(
        form in str(caught.value) for form in ("0.25", "64", "25%", "64/image", "2048/total", "16/frame", "=128/image")
    )
    assert isinstance(caught.value, ValueError)


def test_split_is_checked():
    with pytest.raises(KeepError, match=r"fair.*\n.*proportional, equal"):
        Budget.parse(64, split="fair")


@given(st.floats(0, 1, exclude_min=True) | st.integers(1, 10**9), st.booleans(), splits)
def test_text_gives_the_same_budget(keep, strict, split):
    budget = Budget.parse(keep, split)
    budget = Budget(budget.amount, budget.unit, strict, split)
    assert Budget.parse(str(budget), split) == budget
    assert Budget.parse(budget) is budget


def test_text_is_short():
    assert [str(Budget.parse(k)) for k in (0.25, 1.0, 0.1, 64, "=9/frame")] == [
        "25%",
        "100%",
        "10%",
        "64/image",
        "=9/frame",
    ]


@pytest.mark.parametrize(
    ("keep", "everything"), [(1.0, True), ("100%", True), (0.99, False), (10**6, False), ("9/total", False)]
)
def test_is_all(keep, everything):
    assert Budget.parse(keep).is_all is everything


@pytest.mark.parametrize(
    ("keep", "sizes", "counts"),
    [
        (0.25, [576, 100, 1, 0], [144, 25, 1, 0]),
        (0.145, [100], [15]),  # 0.145 * 100 is 14.499999999999998 in binary
        (0.001, [576], [1]),
        (1.0, [576, 7], [576, 7]),
        (64, [576, 64, 10, 0], [64, 64, 10, 0]),
        ("100/total", [300, 100], [75, 25]),
        ("1000/total", [300, 100], [300, 100]),
        ("2/total", [9, 9, 9], [1, 1, 1]),  # no image vanishes
    ],
)
def test_counts(keep, sizes, counts):
    assert Budget.parse(keep).counts(sizes) == counts


def test_counts_per_frame():
    assert Budget.parse("16/frame").counts([400, 100, 20], [4, 1, 2]) == [64, 16, 20]
    assert Budget.parse("16/frame").counts([400]) == [16]


@pytest.mark.parametrize(
    ("keep", "have", "message"),
    [
        ("=128/image", [576, 100], "asks for 128 tokens, the image has 100"),
        ("=128/total", [60, 60], "asks for 128 tokens, the sample has 120"),
        ("=64/frame", [100], "asks for 128 tokens, the image has 100"),
    ],
)
def test_strict(keep, have, message):
    with pytest.raises(KeepError, match=message) as caught:
        Budget.parse(keep).counts(have, [2] * len(have))
    assert keep[1:] in caught.value.hint
    assert all(k <= n for k, n in zip(Budget.parse(keep[1:]).counts(have, [2] * len(have)), have, strict=True))


@given(st.sampled_from(["37%", "=37%", "5/image", "40/total", "3/frame"]), sizes, splits)
def test_counts_are_caps(keep, sizes, split):
    for k, n in zip(Budget.parse(keep, split).counts(sizes, [2] * len(sizes)), sizes, strict=True):
        assert (1 <= k <= n) if n else k == 0


@given(st.integers(1, 300), sizes, splits)
def test_share_out(total, sizes, split):
    shares, parts = share_out(total, sizes, split), sum(n > 0 for n in sizes)
    assert sum(shares) == min(sum(sizes), max(total, parts))
    assert all((1 <= k <= n) if n else k == 0 for k, n in zip(shares, sizes, strict=True))
    assert Budget(total, "total", split=split).counts(sizes) == shares


@given(st.integers(1, 300), sizes)
def test_share_out_is_proportional(total, sizes):
    shares = share_out(total, sizes)
    exact = [min(total, sum(sizes)) * n / max(1, sum(sizes)) for n in sizes]
    if all(e >= 1 for e, n in zip(exact, sizes, strict=True) if n):
        assert all(abs(k - e) < 1 for k, e in zip(shares, exact, strict=True))


@given(st.integers(1, 300), sizes)
def test_share_out_is_equal(total, sizes):
    """Who gets less than another, by more than rounding, has nothing left to give."""
    shares = share_out(total, sizes, "equal")
    if total >= len(sizes):
        assert all(k == n or k >= max(shares) - 1 for k, n in zip(shares, sizes, strict=True))


@pytest.mark.parametrize(
    ("x", "whole"), [(0.5, 1), (1.5, 2), (2.5, 3), (0.49, 0), (14.4999, 14), (14.499999999999998, 15)]
)
def test_nearest(x, whole):
    assert nearest(x) == whole
