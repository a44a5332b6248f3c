import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.todre import ToDRE
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 180, 100, 90, 350]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
ATTENTION = torch.tensor([[0.9, 0.2, 0.3, 0.1, 0.4]])


def view(k: int, **more) -> View:
    return View(X, k, extras={"attention": Extra(ATTENTION)}, **more)


def test_starts_where_attention_is_highest_and_goes_opposite():
    """From 0 degrees to 180."""
    assert ToDRE().order(view(2)).tolist() == [0, 1]


def test_smallest_sum_or_smallest_maximum():
    """From 0 to 150 degrees. Then 140: cosines -0.77 and 0.98, sum 0.22; 60: 0.5 and 0, sum 0.5."""
    angles = torch.deg2rad(torch.tensor([0.0, 150, 140, 60]))
    x = torch.stack([angles.cos(), angles.sin()], 1)
    one = View(x, 3, extras={"attention": Extra(torch.tensor([[0.9, 0.1, 0.0, 0.0]]))})
    assert ToDRE().order(one).tolist() == [0, 1, 2]
    assert ToDRE(objective="k_center").order(one).tolist() == [0, 1, 3]


def test_starts_in_the_overview():
    """Token 0 has the highest attention, but lies in a crop; of the overview's, 4 has."""
    one = view(2, tile=torch.tensor([1, 1, 0, 0, 0]), row=torch.zeros(5, dtype=torch.long))
    assert ToDRE().order(one).tolist()[0] == 4


def test_objective_is_checked():
    with pytest.raises(PlanError, match="objective"):
        Plan.of("todre:keep=64,objective=sum")
