"""VisPruner (arXiv:2412.01818, the ICCV version of FasterVLM): attention picks what matters, the rest is thinned out.

Half of the budget goes to the tokens that the CLS token attends to most. The others are thinned for variety: they are
split into two sets by turns, and the few of the first that resemble the second most are dropped, again and again.

What is odd: after a round the survivors of the first set come first, most similar first, so that the next split is
another one. The order is part of the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..method import Card, Method
from ..parts.select import ranked
from ..parts.thin import thin
from ..tokens import Reduction, View


@dataclass(frozen=True)
class VisPruner(Method):
    """Keep important tokens by attention, and diverse ones among the others.

    Attributes:
        important: share of the budget that goes to important tokens, in [0, 1], rounded down.
        step: tokens dropped per round; more is faster and coarser.
    """

    card = Card(
        name="vispruner",
        title="Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
        paper="arXiv:2412.01818",
        code="https://github.com/Theia-4869/VisPruner",
        licence="Apache-2.0",
        features="before",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "An odd number of tokens is split with one more in the first set; the authors' code stops with an error.",
            "Similarities are computed once, and a round looks only as far as it must; the authors' code computes them "
            "anew in every round. Which tokens stay is the same.",
            "With several tiles the budget is the image's, and tiles compete for it.",
            "Towers without a CLS token: importance is the attention that a token receives on average.",
        ),
    )

    important: float = 0.5
    step: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise ValueError(f"important={self.important} is not a share in [0, 1]")
        if self.step < 1:
            raise ValueError(f"step={self.step} is not a number of tokens, 1 or more")

    def __call__(self, view: View) -> Reduction:
        order = ranked(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        few = math.floor(self.important * view.k + 1e-9)
        rest = order[few:]
        kept = torch.cat([order[:few], rest[thin(view.x[rest], view.k - few, self.step)]])
        return Reduction.drop(kept.sort().values, view.n)
