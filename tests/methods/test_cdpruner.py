import math

import pytest
import torch

from foveate.methods.cdpruner import CDPruner
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 10, 90, 180]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def kept(relevance: list[float], k: int) -> list[int]:
    return CDPruner()(View(X, k, extras={"relevance": Extra(torch.tensor(relevance))})).anchor.tolist()


def test_diversity_times_relevance_squared():
    """Token 0 is the most relevant. Of its near copy at 10 degrees sin(10)^2 = 0.030 is new, of the one at 90 all.

    0.95^2 x 0.030 = 0.027 against 0.3^2 = 0.09, and against 0.15^2 = 0.0225.
    """
    assert kept([1.0, 0.95, 0.3, 0.0], 2) == [0, 2]
    assert kept([1.0, 0.95, 0.15, 0.0], 2) == [0, 1]


def test_quality_is_stretched():
    """The least relevant keeps a trace: 1e-6 in the numerator alone."""
    found = CDPruner.quality(torch.tensor([0.2, 0.6, 0.4]))
    torch.testing.assert_close(found, torch.tensor([1e-6 / 0.4, 1.0 + 1e-6 / 0.4, 0.5 + 1e-6 / 0.4]))
    assert CDPruner.quality(torch.full((3,), 0.7)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_equal_relevance_is_plain_diversity(k):
    """In a plane two directions are all there is: 0, then the one at 90; then a new round."""
    found = kept([0.5] * 4, k)
    assert len(found) == k and set(found[:1]) == {0} and (k < 2 or 2 in found)


def test_the_question_decides():
    """Without an outside encoder: cosine with the words, here all along token 0, or along token 2."""
    for word, first in (([1.0, 0.0], 0), ([0.0, 2.0], 2)):
        view = View(X, 1, extras={"question": Extra(torch.tensor([word]))})
        assert CDPruner()(view).anchor.tolist() == [first]
    assert math.isclose(float(X[2, 1]), 1)
