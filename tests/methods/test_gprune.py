import math

import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.gprune import GPrune
from foveate.parts.similarity import cosines
from foveate.tokens import View

ANGLES = torch.deg2rad(torch.tensor([0.0, 45, 180]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) * torch.tensor([[4.0], [2.0], [1.5]])


def test_one_round_by_hand():
    """0 and 1 are linked by cos 45 = 0.707, 2 is alone. At temperature 1 a linked token keeps 1 / (1 + e^-0.293)."""
    own = 1 / (1 + math.exp(math.sqrt(0.5) - 1))
    expected = torch.tensor([(4 * own + 2 * (1 - own)) / 2, (2 * own + 4 * (1 - own)) / 2, 1.5])
    torch.testing.assert_close(GPrune(temperature=1.0, rounds=1).score(View(X, 1)), expected)


def test_the_power_of_the_matrix():
    """Scores are norms times the fifth power of the softmax over linked tokens, over the number of links."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    likeness = cosines(x).fill_diagonal_(1)
    flow = torch.where(likeness < 0.5, -5000.0, likeness / 0.03).softmax(1)
    degree = (likeness >= 0.5).sum(1)
    expected = x.norm(dim=1) @ torch.linalg.matrix_power(flow, 5) / degree
    torch.testing.assert_close(GPrune().score(View(x, 4)), expected, rtol=1e-4, atol=1e-5)


def test_lone_tokens_keep_their_norm():
    x = torch.diag(torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(GPrune().score(View(x, 2)), torch.tensor([3.0, 1.0, 2.0]))
    assert GPrune()(View(x, 2)).anchor.tolist() == [0, 2]


def test_copies_share():
    """Two copies of a long token are worth half of it each."""
    x = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(GPrune().score(View(x, 1)), torch.tensor([2.0, 2.0, 3.0]))


@pytest.mark.parametrize("fault", ["threshold=1.5", "temperature=0.0", "rounds=-1"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"gprune:keep=64,{fault}")
