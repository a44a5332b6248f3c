"""MustDrop (arXiv:2411.10803): tokens are dropped wherever in its life a picture has some to spare.

In the tower uniform windows are merged and key tokens marked (``mustdrop_merge``); between the language model's layers
tokens leave that the text does not look at, but no key token (``mustdrop_filter``); after the prompt, what left is cut from
the caches of the layers that still had it (``mustdrop_decode``). One budget, and each stage can be switched off.

What is odd: the tower's share is blind to the question, and what it merges no filter can bring back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

from ..budget import Budget
from ..method import Card, Method, Recipe
from .mustdrop_decode import MustDropDecode
from .mustdrop_filter import MustDropFilter
from .mustdrop_merge import MustDropMerge


@dataclass(frozen=True)
class MustDrop(Recipe):
    """Merge in the tower, filter between the layers, then cut the cache, under one budget.

    Of a share, each of the first two stages keeps the square root; of a number of tokens, the tower leaves twice as many as
    are asked for.

    Attributes:
        merge: whether windows are merged in the tower and key tokens marked.
        filter: whether tokens are filtered between the layers.
        decode: whether the caches of filtered layers are cut to what is left in the end; it follows a filter.
    """

    card = Card(
        name="mustdrop",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        paper="arXiv:2411.10803",
        code="https://github.com/liuting20/MustDrop",
        stages=("encoder", "layers", "cache"),
        features="before",
        guidance="question",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "Re-interpretation: one budget is met, split evenly between the first two stages (the same share at each). The "
            "paper has a threshold for each, and counts that hold on average. Rounded twice, a share may miss by a token.",
            "Key tokens are marked by the first stage; without it the filter protects none.",
            "What holds for `mustdrop_merge`, `mustdrop_filter` and `mustdrop_decode` holds here.",
        ),
    )

    merge: bool = True
    filter: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        if not (self.merge or self.filter):
            raise ValueError("merge=False and filter=False leave no stage")

    def steps(self, keep: Budget) -> Sequence[tuple[Method, object, str]]:
        first = last = keep
        if self.merge and self.filter and keep.unit == "share":
            first = last = replace(keep, amount=sqrt(keep.amount))
        elif self.merge and self.filter:
            first = replace(keep, amount=2 * keep.amount, strict=False)
        stages: list[tuple[Method, object, str]] = [(MustDropMerge(), first, "encoder")] if self.merge else []
        if self.filter:
            stages.append((MustDropFilter(), last, "layers"))
        if self.filter and self.decode:
            stages.append((MustDropDecode(), None, "cache"))
        return stages
