import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.parts.grid import bins, fit, pool

side = st.integers(1, 30)


@pytest.mark.parametrize(
    ("height", "width", "k", "grid"),
    [
        (24, 24, 576, (24, 24)),
        (24, 24, 575, (23, 24)),
        (24, 24, 64, (8, 8)),
        (24, 24, 128, (11, 11)),
        (24, 24, 192, (13, 14)),
        (24, 24, 2, (1, 2)),
        (24, 24, 1, (1, 1)),
        (12, 48, 144, (6, 24)),
        (48, 12, 144, (24, 6)),
        (2, 50, 10, (1, 10)),
        (100, 1, 33, (33, 1)),
    ],
)
def test_fit(height, width, k, grid):
    assert fit(height, width, k) == grid


@given(side, side, st.integers(1, 1000))
def test_fit_stays_within_budget_and_grid(height, width, k):
    h, w = fit(height, width, k)
    assert 1 <= h <= height and 1 <= w <= width and h * w <= k
    assert (h, w) == (height, width) or k < height * width
    # It could not be larger in one direction without leaving the budget, unless that bent its shape.
    if h == height or w == width:
        assert min(height, h + 1) * min(width, w + 1) > k or (h, w) == (height, width)


@given(st.integers(1, 40), st.data())
def test_bins_are_those_of_adaptive_pooling(full, data):
    fewer = data.draw(st.integers(1, full))
    first, last, home = bins(torch.arange(full), full, fewer)
    for i in range(fewer):
        rows = range(i * full // fewer, -(-(i + 1) * full // fewer))
        assert [r for r in range(full) if first[r] <= i <= last[r]] == list(rows)
        assert any(home[r] == i for r in range(full)), "in a full grid every bin is somebody's home"
    assert bool(((first <= home) & (home <= last)).all())


@given(side, side, st.data())
def test_pool_on_grids_with_gaps(height, width, data):
    here = torch.tensor(data.draw(st.lists(st.integers(0, height * width - 1), min_size=1, unique=True).map(sorted)))
    fewer = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    row, col = here // width, here % width
    reduction = pool(row, col, (height, width), fewer, torch.ones(len(here))).check()
    assert 0 < reduction.m <= fewer[0] * fewer[1]
    assert bool((reduction.anchor[1:] > reduction.anchor[:-1]).all())
    assert torch.isin(reduction.anchor, reduction.src).all(), "an anchor is one of those that are averaged"
    torch.testing.assert_close(reduction.apply(torch.ones(len(here), 2)), torch.ones(reduction.m, 2))
    assert set(reduction.src.tolist()) == set(range(len(here))), "no token is lost"


def test_pool_equals_pytorch():
    x = torch.randn(13 * 9, 4)
    index = torch.arange(13 * 9)
    reduction = pool(index // 9, index % 9, (13, 9), (5, 4), torch.ones(len(x)))
    expected = torch.nn.functional.adaptive_avg_pool2d(x.T.view(1, 4, 13, 9), (5, 4)).flatten(2)[0].T
    torch.testing.assert_close(reduction.apply(x), expected)
