"""MustDrop (arXiv:2411.10803), its third stage: what the last layers could do without need not be stored in the others.

A token that a filter dropped between the layers is still in the caches of the layers before it. Once the prompt is through,
those caches are cut to the tokens that ran to the end, so that decoding attends to the same ones in all these layers.

What is odd: nothing is looked at while decoding, whatever the name says: an answer that turns to another part of the picture
finds less of it than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..entries import Entries, Eviction
from ..method import CacheMethod, Card
from ..parts.entries import all_heads
from ..tokens import Kind


@dataclass(frozen=True)
class MustDropDecode(CacheMethod):
    """Cut the caches of filtered layers to the tokens that ran in the last layer; text stays.

    It needs no budget, and any budget but keep=1.0, which turns it off, changes nothing. Without a step between the layers
    it has nothing to cut.

    Attributes:
        earlier: cut the layers before the first filter, too.
    """

    card = Card(
        name="mustdrop_decode",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        paper="arXiv:2411.10803",
        code="https://github.com/liuting20/MustDrop",
        stages=("cache",),
        guidance="question",
        count="content",
        budget="entries",
        touches="visual",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "The third of three stages; it cuts after any other method between the layers as well.",
            "Re-interpretation: a layer is before the first filter if its entries have no gap. That is wrong only for a picture "
            "at the very beginning or end of a prompt of which a filter left one side; such a layer is not cut.",
            "The paper calls it aware of the output; its code cuts once, after the prompt, and so does this.",
            "Kept entries keep their positions; the authors number tokens anew after every filter.",
        ),
    )

    earlier: bool = False

    @property
    def settled(self) -> bool:
        return True

    def allot(self, k: int, n: int, measures: Sequence[float]) -> Sequence[int]:
        return [n] * len(measures)

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        stays = entries.left | (entries.kind == int(Kind.TEXT))
        complete = int(entries.number[-1] - entries.number[0]) + 1 == entries.n
        if (complete and not self.earlier) or not bool(stays.any()):
            stays = stays | True
        return Eviction(entries.n, all_heads(stays.nonzero()[:, 0], len(entries.keys)))
