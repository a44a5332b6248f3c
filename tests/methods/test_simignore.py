import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.simignore import Simignore
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 50, 80, 130]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
WORDS = torch.tensor([[1.0, 0.0], [0.0, 3.0]])


def order(k: int, words: torch.Tensor = WORDS, **options) -> list[int]:
    return Simignore(**options).order(View(X, k, extras={"question": Extra(words)})).tolist()


def test_first_come_in_the_list_of_pairs():
    """Angles to the nearer word: 0, 40, 10, 40. Pairs by angle: 0 10 40 40 50 80 90 130; tokens 0 2 1 3 1 2 0 3."""
    assert order(4) == [0, 2, 1, 3]
    assert Simignore()(View(X, 2, extras={"question": Extra(WORDS)})).anchor.tolist() == [0, 2]


def test_every_other_pair():
    """Places 0, 2, 4, 6 hold tokens 0, 1, 1, 0; then those passed over: 2, 3."""
    assert order(4, step=2) == [0, 1, 2, 3]
    assert order(4, step=2, start=1) == [2, 3, 0, 1], "places 1, 3, 5, 7 hold 2, 3, 2, 3"
    assert order(2, start=6) == [0, 3]


def test_tokens_really_leave():
    reduction = Simignore()(View(X, 2, extras={"question": Extra(WORDS)}))
    assert reduction.is_drop and reduction.m == 2


def test_no_words():
    assert order(3, WORDS[:0]) == [0, 1, 2]


@pytest.mark.parametrize("fault", ["step=0", "start=-1"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"simignore:keep=64,{fault}")
