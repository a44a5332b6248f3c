"""FlowCut (arXiv:2505.19536): what matters shows in the flow of information through the tower, not in a single layer.

After every block a token gets a score of that block: how much the CLS token attends to it, plus how much its value vector
resembles the CLS token's (both as shares), times the length of its value vector. A running score takes half of the new
score and half of the old. Every other block drops the tokens that score lowest; how many, the spread of the attention
decides: attention on few tokens means that many carry nothing, and then more go.

What is odd: the number dropped follows the present attention, which tokens go follows the whole past; only the last stop
looks at the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from ..method import Card, TowerMethod
from ..parts.select import top
from ..tokens import Reduction, View


@dataclass(frozen=True)
class FlowCut(TowerMethod):
    """Prune through the tower by an accumulated score, down to k tokens before its last block.

    Attributes:
        every: blocks from one pruning to the next; the last pruning is always before the last block.
    """

    card = Card(
        name="flowcut",
        title="FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models",
        paper="arXiv:2505.19536",
        code="https://github.com/TungChintao/FlowCut",
        licence="Apache-2.0",
        stages=("encoder",),
        features="before",
        needs=("attention", "value_attention", "values"),
        mechanism="attention",
        differences=(
            "A probability of zero adds nothing to the entropy; in the authors' code it makes it NaN.",
            "Pictures and tiles are pruned each by their own attention; the authors take the largest number of the batch.",
            "Towers without a CLS token: attention is what a token receives on average, and value vectors are compared "
            "with their mean.",
            "Where the connector joins patches, blocks of patches are scored and dropped together, scores added up. The "
            "authors drop single patches, so that later groups of four are no longer neighbours.",
            "The second pruning, which the authors make inside the language model for pictures in tiles, is left out.",
        ),
    )

    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} is not a number of blocks")

    def stops(self, depth: int) -> Sequence[int]:
        return range(1, depth)

    def score(self, view: View) -> Tensor:
        """(n,) of the last block alone."""
        attention, alike = (view.need(name).float().mean(0) for name in ("attention", "value_attention"))
        length = view.need("values").float().abs().sum(1)
        return (_shares(attention) + _shares(alike)) * length

    def carry(self, view: View) -> Mapping[str, Tensor]:
        score = self.score(view)
        return {"flow": score if "flow" not in view.marks else (view.marks["flow"] + score) / 2}

    def number(self, view: View) -> int:
        """How many tokens to drop at this stop."""
        most = view.n - view.k
        if view.left == 0 or most == 0:
            return most
        p = _shares(view.need("attention").double().mean(0))
        spread = -torch.special.xlogy(p, p).sum().item() / log(view.n)  # 1: all tokens alike
        return min(most, round(most / sqrt(view.left) * (1 - spread**2)))

    def __call__(self, view: View) -> Reduction:
        score = view.marks["flow"] if "flow" in view.marks else self.score(view)
        gone = self.number(view) if view.left % self.every == 0 else 0
        return Reduction.drop(top(score, view.n - max(0, gone)), view.n)


def _shares(x: Tensor) -> Tensor:
    """(n,) with sum one; equal where all are zero."""
    total = x.sum()
    return torch.where(total == 0, torch.full_like(x, 1 / len(x)), x / total)
