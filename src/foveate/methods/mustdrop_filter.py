"""MustDrop (arXiv:2411.10803), its second stage: tokens leave that neither the text as a whole nor any word looks at.

At four stops attention from the text after the picture is averaged over heads. A token goes if its sum over the text is
below a share of what all tokens get, and no single word gives it much either. Key tokens that the tower marked always stay.

What is odd: thresholds promise nothing about how many go; the authors tuned them for counts that hold on average. With a
budget the same two questions only rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots, geometric
from ..parts.score import known
from ..parts.select import ranked
from ..tokens import Reduction, View

LIMITED = "limited"


@dataclass(frozen=True)
class MustDropFilter(LayerMethod):
    """Drop what gets little attention from the text in sum and from every single word, but no key token.

    Without ``keep`` the thresholds say how many stay. With it the budget does: the same share leaves at every stop.

    Attributes:
        layers: the first layer after each filter; layers, or shares of the depth below 1.0.
        overall: share of the picture's attention, summed over words, from which on a token passes; larger drops more.
        single: attention of a single word from which on a token passes; larger drops more.
    """

    card = Card(
        name="mustdrop_filter",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        paper="arXiv:2411.10803",
        code="https://github.com/liuting20/MustDrop",
        stages=("layers",),
        needs=("text_rows",),
        guidance="question",
        count="content",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "The second of three stages. Key tokens are there if `mustdrop_merge` ran before; without it none are.",
            "Re-interpretation: with a budget, which the paper does not have, key tokens stay first, then tokens that pass a "
            "threshold, then the others; within each by summed attention. If there are more key tokens than the budget, "
            "those with the most stay.",
            "The defaults are the authors' thresholds for 192 tokens on average; for 128 they have overall=0.0012 and "
            "single=0.001, for 64 overall=0.011 and single=0.01.",
            "Kept tokens keep their positions; the authors number them anew after every filter.",
            "Several pictures are filtered each by itself, by its own sum; the authors have one.",
            "High thresholds may spare nothing; then the picture leaves.",
        ),
    )

    layers: tuple[float, ...] = (3 / 32, 7 / 32, 11 / 32, 15 / 32)
    overall: float = 0.001
    single: float = 0.001

    def __post_init__(self) -> None:
        check_spots("layers", self.layers)
        for name in ("overall", "single"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"{name}={value} is below 0")

    @property
    def settled(self) -> bool:
        return True

    def stops(self, depth: int) -> Sequence[int]:
        return before(self.layers, depth)

    def passes(self, rows: Tensor) -> Tensor:
        """(n,) True for tokens that reach one of the thresholds. rows: (q, n) attention from each word, mean over heads."""
        summed = known(rows.sum(0))
        return (summed >= summed.sum() * self.overall) | (rows.amax(0) >= self.single)

    def carry(self, view: View) -> Mapping[str, Tensor]:
        """Whether there is a budget, seen at the first stop: later ones may find that it is met already."""
        if view.n < view.entered:
            return {}
        return {LIMITED: torch.full((view.n,), view.k < view.n, device=view.x.device)}

    def __call__(self, view: View) -> Reduction | None:
        rows = view.need("text_rows").float().mean(0)  # (q, n)
        passes = self.passes(rows)
        key = view.marks.get("key", torch.zeros_like(passes))
        if view.k < view.n:
            order, tier = ranked(rows.sum(0)), torch.where(key, 2, passes.long())
            order = order[tier[order].sort(descending=True, stable=True).indices]
            return Reduction.drop(order[: geometric(view)].sort().values, view.n)
        if LIMITED in view.marks and bool(view.marks[LIMITED][0]):
            return None
        kept = (key | passes).nonzero()[:, 0]
        return Reduction.drop(kept, view.n) if len(kept) < view.n else None
