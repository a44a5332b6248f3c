"""HiPrune (arXiv:2508.00553): middle layers of the tower look at objects, late ones at the whole; take some of each.

Anchors are the tokens with the highest attention in a middle layer. Their four neighbours come along as buffers. The
rest of the budget goes to registers, the tokens with the highest attention in a late layer.

What is odd: anchors and buffers are a tenth of the budget, so that with 64 tokens there is a single anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.select import ranked
from ..tokens import Reduction, View


@dataclass(frozen=True)
class HiPrune(Method):
    """Keep anchors with their neighbours, then registers.

    Attributes:
        alpha: share of the budget for anchors and buffers, in [0, 1]; an anchor with its buffers counts five.
        early: the object layer, as a share of the tower's depth in [0, 1). The authors' ninth of 24 layers by default.
    """

    card = Card(
        name="hiprune",
        title="HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
        paper="arXiv:2508.00553",
        code="https://github.com/Danielement321/HiPrune",
        licence="MIT",
        features="before",
        needs=("attention", "early"),
        mechanism="attention",
        differences=(
            "Attention is the CLS row where there is one; the authors average what a token receives over all queries, "
            "as is done here for towers without CLS.",
            "Neighbours are those on the grid, inside the same tile and frame. In the authors' code the left neighbour "
            "of a row's first token is the last of the row above.",
            "Where anchors and buffers are more than the budget, the anchors come first, then the buffers with the "
            "highest attention in the object layer.",
            "With several tiles the budget is the image's, and tiles compete for it; the authors give each the same.",
        ),
    )

    alpha: float = 0.1
    early: float = 8 / 23

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not a share in [0, 1]")
        if not 0 <= self.early < 1:
            raise ValueError(f"early={self.early} is not a share of the tower's depth in [0, 1)")

    def __call__(self, view: View) -> Reduction:
        middle, late = (view.need(name).float().mean(0) for name in ("early", "attention"))  # (h, n) -> (n,)
        by_object = ranked(middle)
        anchors = by_object[: round(self.alpha * view.k / 5)]
        # One order of all tokens: anchors, buffers, others; each kind by the layer that speaks for it.
        kind = torch.full((view.n,), 2, device=view.x.device)
        kind[beside(view, anchors)] = 1
        kind[anchors] = 0
        place = torch.empty_like(kind)
        place[ranked(late)] = torch.arange(view.n, device=kind.device)
        first = torch.empty_like(kind)
        first[by_object] = torch.arange(view.n, device=kind.device)
        order = (kind * view.n + torch.where(kind < 2, first, place)).argsort()
        return Reduction.drop(order[: view.k].sort().values, view.n)


def beside(view: View, index: Tensor) -> Tensor:
    """The tokens (at most 4 a,) left, right, above and below of some (a,), in the same tile and frame."""
    width, height = view.col.max() + 2, view.row.max() + 2  # one free column and row, so that no step wraps round
    key = ((view.t * (view.tile.max() + 1) + view.tile) * height + view.row + 1) * width + view.col + 1  # (n,)
    wanted = torch.cat([key[index] + step for step in (-1, 1, -width, width)])
    return torch.isin(key, wanted).nonzero()[:, 0]
