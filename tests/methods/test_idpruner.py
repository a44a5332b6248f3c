import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.idpruner import IDPruner
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 30, 60, 90]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
ATTENTION = torch.tensor([[0.5, 0.4, 0.2, 0.1]])  # stretched: 1, 0.75, 0.25, 0


def kept(k: int, **options) -> list[int]:
    return IDPruner(**options)(View(X, k, extras={"attention": Extra(ATTENTION)})).anchor.tolist()


def test_importance_against_similarity():
    """After 0, halves: 0.375 - 0.433 for 1, 0.125 - 0.25 for 2, 0 - 0 for 3. Three quarters: 0.563 - 0.217 for 1."""
    assert kept(2) == [0, 3]
    assert kept(2, balance=0.75) == [0, 1]


def test_ends_of_the_scale():
    assert kept(3, balance=1.0) == [0, 1, 2]
    assert kept(2, balance=0.0) == [0, 3]


def test_picks_of_one_step_do_not_see_each_other():
    assert kept(2, together=2) == [0, 1]
    assert kept(3, together=2) == [0, 1, 3]


@pytest.mark.parametrize("fault", ["balance=1.5", "together=0"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"idpruner:keep=64,{fault}")
