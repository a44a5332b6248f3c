import math

import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.flashvlm import FlashVLM
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 60, 90, 91, 92, 93]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
ATTENTION = torch.tensor([[0.30, 0.25, 0.20, 0.15, 0.09, 0.01]])


def view(k: int, words: torch.Tensor) -> View:
    return View(X, k, extras={"attention": Extra(ATTENTION), "question": Extra(words)})


def stretched(values: list[float]) -> list[float]:
    return [(v - min(values)) / (max(values) - min(values) + 1e-6) for v in values]


def test_votes_step_by_step():
    """Two words, the second half as long: its cosines count half. Soft maximum, softmax, power, floor for all but the top."""
    words = [(2.0, 0.0), (0.0, 1.0)]
    soft = []
    for x, y in X.tolist():
        match = [x * 1.0, y * 0.5]
        share = [math.exp(m / 0.05) for m in match]
        soft.append(sum(s * m for s, m in zip(share, match, strict=True)) / sum(share))
    share = [math.exp(s / 0.01) for s in soft]
    sharp = stretched([(s / sum(share)) ** 2.5 for s in share])
    ordered = sorted(sharp)
    cut = ordered[-2] + 0.975 * (ordered[-1] - ordered[-2])  # the quantile of 0.995 of six: 4.975 steps up
    expected = stretched([s if s >= cut else 0.1 * s for s in sharp])
    torch.testing.assert_close(FlashVLM.votes(X, torch.tensor(words)), torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_powers_of_attention_and_votes():
    words = torch.tensor([[0.0, 1.0]])
    attention = torch.tensor(stretched(ATTENTION[0].tolist())).clamp(min=1e-6)
    votes = FlashVLM.votes(X, words).clamp(min=1e-6)
    torch.testing.assert_close(FlashVLM().score(view(2, words)).exp(), (attention * votes).sqrt())
    torch.testing.assert_close(FlashVLM(text=0.25).score(view(2, words)).exp(), attention**0.75 * votes**0.25)


@pytest.mark.parametrize(("background", "best"), [(0.0, 4), (0.5, 2), (0.4, 2), (1.0, 0)])
def test_share_of_the_background(background, best):
    """Without words attention alone ranks: 0 to 5. At least `best` of 4 are its best, the others are thinned out."""
    kept = FlashVLM(background=background)(view(4, torch.zeros(0, 2))).anchor.tolist()
    assert len(kept) == 4 and kept[:best] == list(range(best))
    if background == 0.5:
        assert set(kept) != {0, 1, 2, 3}, "2 and 3 are a degree apart: one of them goes"


def test_two_questions_two_sets():
    method = FlashVLM(background=0.0, text=1.0)
    assert method(view(1, torch.tensor([[1.0, 0.0]]))).anchor.tolist() == [0]
    assert method(view(1, torch.tensor([[0.0, 1.0]]))).anchor.tolist() == [2]


@pytest.mark.parametrize("fault", ["background=1.5", "text=-0.5"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"flashvlm:keep=64,{fault}")
