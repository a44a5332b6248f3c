import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.scope import SCOPE
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 60, 90, 180]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def order(saliency: list[float], k: int, alpha: float = 1.0) -> list[int]:
    view = View(X, k, extras={"attention": Extra(torch.tensor([saliency]))})
    return SCOPE(alpha=alpha).order(view).tolist()


def test_gain_times_saliency():
    """Cosines: 1 with 0 and 2 has 0.5 and 0.866; 3 has -1, -0.5 and 0 with the others, which count as 0.

    First gains: 1.5, 2.366, 1.866, 1. After 1 the tokens stand at 0.5, 1, 0.866, 0: 0 gains 0.5, 2 gains 0.134, 3 all of 1.
    """
    assert order([1.0, 1, 1, 1], 4) == [1, 3, 0, 2]
    assert order([1.0, 0.6, 1, 1], 1) == [2], "1.866 against 0.6 x 2.366 = 1.42"
    assert order([1.0, 1, 1, 0.4], 3) == [1, 0, 3], "0.5 against 0.4"


def test_power_of_the_saliency():
    """0.8 x 2.366 = 1.89 is above 1.866; 0.64 x 2.366 is not."""
    saliency = [1.0, 0.8, 1, 1]
    assert order(saliency, 1) == [1]
    assert order(saliency, 1, alpha=2.0) == [2]
    assert order([0.01, 0.9, 0.5, 0.2], 4, alpha=0.0) == [1, 3, 0, 2], "coverage alone"


def test_heads_are_averaged():
    view = View(X, 1, extras={"attention": Extra(torch.tensor([[0.0, 0, 0, 1], [0, 0, 0, 1]]))})
    assert SCOPE()(view).anchor.tolist() == [3]


def test_power_is_checked():
    with pytest.raises(PlanError, match="alpha"):
        Plan.of("scope:keep=64,alpha=-1.0")
