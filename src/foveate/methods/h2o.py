"""H2O, heavy hitters (arXiv:2306.14048): few entries get most of all attention, and those that did so far will again.

The attention that an entry received from all tokens so far is added up, head by head. Half of the budget goes to the entries
with the largest sums, half to the latest ones. At every step of decoding the new token adds its attention, and the lightest
old entry leaves, so that the cache stays as large as it is.

What is odd: early entries had more tokens to be looked at by, and nothing makes up for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..entries import Entries, Eviction
from ..method import CacheMethod, Card
from ..parts.entries import best


@dataclass(frozen=True)
class H2O(CacheMethod):
    """Keep the entries that received most attention, and the latest.

    Attributes:
        recent: share of the budget that goes to the latest entries.
        decoding: let entries go while decoding, too.
    """

    card = Card(
        name="h2o",
        title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        paper="arXiv:2306.14048",
        code="https://github.com/FMInference/H2O",
        licence="",
        stages=("cache",),
        needs=("received",),
        budget="entries",
        touches="all",
        positions="original",
        mechanism="attention",
        differences=(
            "Query heads that share a key head add up, and keep the same entries.",
            "Column sums are worked out in chunks of queries, beside sdpa or flash; the authors keep the attention map.",
            "A draft of assisted decoding is checked with the entries that are there: nothing goes while drafts do.",
        ),
    )

    recent: float = 0.5
    decoding: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent={self.recent} is no share of the budget")

    @property
    def evicts(self) -> bool:
        return self.decoding

    def score(self, entries: Entries) -> Tensor:
        return entries.need("received").float().sum(1)  # (h, g, n) -> (h, n)

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        assert score is not None
        return Eviction(entries.n, best(score, entries.k, recent=nearest(self.recent * entries.k)))

    def oldest(self, score: Tensor | None, alive: Tensor) -> Tensor:
        assert score is not None
        budget = alive.sum(1, keepdim=True) - 1
        place = alive.long().cumsum(1) - 1  # (b, s) counted from each row's first
        latest = place > budget - (self.recent * budget + 0.5).floor()
        free = alive & ~latest
        free = torch.where(free.any(1, keepdim=True), free, alive)
        return score.masked_fill(~free[:, None], torch.inf).argmin(-1)
