import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.visionzip import VisionZip
from foveate.tokens import Extra, View

X = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [32.0]])
ATTENTION = torch.tensor([[0.1, 0.9, 0.1, 0.1, 0.8, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
KEYS = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.9, 0.1], [0.0, 1.0], [5.0, 5.0], [0.2, 1.0]])


def view(k: int) -> View:
    return View(X, k, extras={"attention": Extra(ATTENTION), "keys": Extra(KEYS)})


def test_target_plus_mean_of_what_it_takes_in():
    """Dominant: 1 and 4. Rest 0, 2, 3, 5; targets are every second of these, 0 and 3. By keys 2 joins 0 and 5 joins 3."""
    reduction = VisionZip(contextual=0.5)(view(4))
    assert reduction.anchor.tolist() == [0, 1, 3, 4]
    assert reduction.apply(X)[:, 0].tolist() == [1 + 4, 2, 8 + 32, 16]
    assert reduction.sizes(torch.ones(6)).tolist() == [2, 1, 2, 1]


def test_mean_not_sum():
    """One target takes in 2, 3 and 5."""
    reduction = VisionZip(contextual=1 / 3)(view(3))
    assert reduction.anchor.tolist() == [0, 1, 4]
    torch.testing.assert_close(reduction.apply(X)[:, 0], torch.tensor([1 + (4 + 8 + 32) / 3, 2, 16]))


def test_all_dominant():
    reduction = VisionZip(contextual=0.0)(view(2))
    assert reduction.is_drop and reduction.anchor.tolist() == [1, 4]


@pytest.mark.parametrize(("k", "few"), [(1, 0), (3, 0), (4, 1), (6, 1)])
def test_share_of_the_budget(k, few):
    """10 of 64 by default, rounded to the nearest, halves up."""
    reduction = VisionZip()(view(k))
    assert reduction.m == k
    assert reduction.is_drop == (few == 0)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_share_is_checked(share):
    with pytest.raises(PlanError, match="contextual"):
        Plan.of(f"visionzip:keep=64,contextual={share}")
