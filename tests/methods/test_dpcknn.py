import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.dpcknn import DPCKNN
from foveate.tokens import View

HEAPS = torch.tensor([0.0, 5.1, 0.1, 5.0, 0.2, 5.25])[:, None]  # two heaps on a line, interleaved


def test_heaps_become_means_at_their_peaks():
    """Peaks are the tokens with the closest neighbours: 2 (0.1) and 1 (5.1)."""
    reduction = DPCKNN(neighbours=3)(View(HEAPS, 2))
    assert reduction.anchor.tolist() == [1, 2]
    torch.testing.assert_close(reduction.apply(HEAPS)[:, 0], torch.tensor([(5.1 + 5 + 5.25) / 3, 0.1]))
    assert reduction.dst.tolist() == [1, 0, 1, 0, 1, 0]


def test_density_times_distance_to_a_denser_token():
    """By hand, with two neighbours: mean squares of (0, nearest) are 1/2, 1/2, 2 and 8 (times 1), so that densities fall.

    Places 0, 1, 3 and 7. Distances to the nearest denser: 7 (the longest of all, for the densest), 1, 2, 4. Scores
    exp(-1/2) 7 = 4.2, exp(-1/2) = 0.6, exp(-2) 2 = 0.27 and exp(-8) 4 = 0.001: the centres are 0 and 1.
    """
    x = torch.tensor([0.0, 1.0, 3.0, 7.0])[:, None]
    reduction = DPCKNN(neighbours=2)(View(x, 2))
    assert reduction.anchor.tolist() == [0, 1]
    assert reduction.dst.tolist() == [0, 1, 1, 1]


def test_scale_does_not_make_the_centres_arbitrary():
    """exp(-3e8) is zero in any precision, but a peak is a peak."""
    reduction = DPCKNN(neighbours=3)(View(HEAPS * 1e5, 2))
    assert reduction.anchor.tolist() == [1, 2]


def test_sizes_weigh():
    size = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    reduction = DPCKNN(neighbours=3)(View(HEAPS, 2, size=size))
    assert float(reduction.apply(HEAPS)[1]) == pytest.approx((3 * 0.0 + 0.1 + 0.2) / 5)
    assert reduction.sizes(size).tolist() == [3, 5]


def test_options_are_checked():
    with pytest.raises(PlanError, match="neighbours"):
        Plan.of("dpcknn:keep=64,neighbours=0")
