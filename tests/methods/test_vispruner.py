import math

import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.vispruner import VisPruner
from foveate.parts import thin as parts_thin
from foveate.parts.thin import thin
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([200.0, 0, 10, 90, 45, 60]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
ATTENTION = torch.tensor([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])


def test_rounds():
    """Token 0 is the important one. The others, one dropped per round, 2 to stay:

    1 3 5 | 2 4: nearest at 10, 45 and 15 degrees: 1 goes; then 5, 3 (nearest first), 2, 4
    5 2 | 3 4:   15 and 35: 5 goes; then 2, 3, 4
    2 4 | 3:     80 and 45: 4 goes
    """
    view = View(X, 3, extras={"attention": Extra(ATTENTION)})
    assert VisPruner(important=1 / 3, step=1)(view).anchor.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("important", "few"), [(0.5, 2), (0.0, 0), (1.0, 5), (0.39, 1)])
def test_share_of_important_tokens_is_rounded_down(important, few):
    view = View(X, 5, extras={"attention": Extra(ATTENTION)})
    kept = VisPruner(important=important)(view).anchor
    assert len(kept) == 5
    assert set(range(few)) <= set(kept.tolist())


def plainly(x: torch.Tensor, k: int, step: int) -> list[int]:
    """The rounds as the paper has them: every similarity anew."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    left = torch.arange(len(x))
    while len(left) > k:
        a, b = left[::2], left[1::2]
        best = (x[a] @ x[b].mT).round(decimals=9).amax(1)  # copies are equal
        order = best.argsort(descending=True, stable=True)
        left = torch.cat([a[order[min(step, len(left) - k, len(a)) :]], b])
    return left.tolist()


@pytest.mark.parametrize("near", [1, 3, 16, 500])
@pytest.mark.parametrize(("n", "k", "step"), [(200, 20, 8), (201, 1, 8), (90, 7, 50), (33, 32, 1), (64, 5, 3)])
def test_looking_only_as_far_as_needed_changes_nothing(monkeypatch, n, k, step, near):
    monkeypatch.setattr(parts_thin, "NEAR", near)
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
    assert thin(x, k, step).tolist() == plainly(x, k, step)


def test_copies():
    """Basis vectors, four copies of each: cosines are exactly 0 or 1, and ties everywhere go to the first in the list."""
    x = torch.eye(9)[torch.arange(36) % 9]
    assert thin(x, 9, 2).tolist() == plainly(x, 9, 2)


@pytest.mark.parametrize("option", ["important=1.5", "important=-0.1", "step=0"])
def test_options_are_checked(option):
    with pytest.raises(PlanError, match=option.split("=")[0]):
        Plan.of(f"vispruner:keep=2,{option}")


def test_angles_are_what_they_seem():
    assert math.isclose(float(X[1] @ X[2]), math.cos(math.radians(10)), rel_tol=1e-6)
