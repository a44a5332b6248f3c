import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.holov import HoloV
from foveate.tokens import Extra, View


def view(k: int, attention: list[float], x: torch.Tensor | None = None) -> View:
    attention = torch.tensor([attention])
    return View(torch.ones(attention.shape[1], 2) if x is None else x, k, extras={"attention": Extra(attention)})


def test_worth_by_hand():
    """Crops of two. Cosine 0.6 in the first: variety 0.36 each, scaled to mean attention, adds nine per cent.

    In the second the tokens are orthogonal, variety is 0 and adds nothing.
    """
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [5.0, 0.0]])
    worth = HoloV(crops=2).worth(torch.tensor([0.2, 0.4, 0.1, 0.3]), x)
    assert worth == pytest.approx([300 * (1 + 0.09 * 0.36 / (0.36 + 1e-6)), 200])


def test_variety_of_three():
    """Three tokens, cosines 1, 0 and 0: rows of the zeroed matrix (0 1 0), (1 0 0), (0 0 0).

    Means over the two others are 1/2, 1/2 and 0; squares off the mean, own place included, 3/4, 3/4 and 0, halved.
    """
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    attention = torch.tensor([0.1, 0.2, 0.3])
    spread = torch.tensor([0.375, 0.375, 0.0])
    expected = (1000 * attention + 0.5 * spread * 200 / (0.25 + 1e-6)).mean()
    assert HoloV(crops=1, variety=0.5).worth(attention, x) == pytest.approx([float(expected)])


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (1, [1]),
        (2, [0, 1]),  # crops are worth 3 : 2 : 1, so 1, 2/3 and 1/3: 1, 0, 0, and the one that is left to the worthiest
        (3, [0, 1, 2]),  # 1.5, 1, 0.5
        (5, [0, 1, 2, 3, 5]),  # 2.5 is more than the first holds; 3 are left, 2 and 1
    ],
)
def test_quotas(k, kept):
    """Three crops of two tokens. In each the highest attention stays."""
    assert HoloV(crops=3)(view(k, [0.1, 0.2, 0.15, 0.05, 0.04, 0.06])).anchor.tolist() == kept


def test_every_part_of_the_picture_gets_its_share():
    """All the highlights are in the first crop; plain ranking would take nothing else."""
    attention = [0.5] * 8 + [0.25] * 24
    kept = HoloV(crops=4)(view(10, attention)).anchor
    assert torch.bincount(kept // 8, minlength=4).tolist() == [4, 2, 2, 2]


@pytest.mark.parametrize("crops", [1, 5, 16, 99])
def test_crops_need_not_divide(crops):
    assert HoloV(crops=crops)(view(7, torch.linspace(0, 1, 13).tolist())).m == 7


@pytest.mark.parametrize("option", ["crops=0", "variety=-1", "variety=nan"])
def test_options_are_checked(option):
    with pytest.raises(PlanError, match=option.split("=")[0]):
        Plan.of(f"holov:keep=2,{option}")
