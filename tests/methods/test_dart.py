import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.dart import DART
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 30, 60, 90, 120, 150]))
LENGTH = torch.tensor([9.0, 1, 1, 1, 1, 1])
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) * LENGTH[:, None]


def view(k: int, words: list[list[float]]) -> View:
    return View(X, k, extras={"question": Extra(torch.tensor(words).view(-1, 2))})


def test_pivots_keep_what_is_least_like_them():
    """Token 0 is the longest, a pivot. The word of largest L1 norm points to 90 degrees.

    Two shares of one each: pivot 0 takes 5, at 150 degrees; the word takes 1, at 60 degrees from it, as is 5, taken already.
    """
    method = DART(pivots=1, words=1)
    assert method(view(3, [[0.1, 0.1], [0.0, 7.0]])).anchor.tolist() == [0, 1, 5]


def test_l1_not_l2():
    """(3, 3) has the larger sum, (5, 0) the larger length."""
    x = torch.tensor([[5.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    one = View(x, 1, extras={"question": Extra(torch.zeros(0, 2))})
    assert DART()(one).anchor.tolist() == [1]


def test_a_question_without_words():
    """The picture's own pivots do it all: 0 keeps those at 150 and 120 degrees."""
    assert DART(pivots=1)(view(3, [])).anchor.tolist() == [0, 4, 5]


def test_two_questions_two_sets():
    method = DART(pivots=1, words=1)
    answers = [method(view(4, [word])).anchor.tolist() for word in ([1.0, 0.0], [0.0, 1.0])]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("fault", ["pivots=0", "words=-1"])
def test_numbers_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"dart:keep=64,{fault}")
