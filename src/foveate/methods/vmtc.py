"""VMTC (arXiv:2411.15453): keep what the tower looks at, and sum up the rest by its kinds.

Primary tokens, those the CLS token attends to most, stay as they are. The others are redundant: they are clustered by
k-means on cosines, and each cluster becomes one token, the mean of its members weighted by the attention they got.

What is odd: the paper's other half, CMAI, inhibits attention between text and image inside the language model. It is
independent of this one and no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..budget import nearest
from ..method import Card, Method
from ..parts.cluster import farthest_points, kmeans
from ..parts.score import known
from ..parts.select import top
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class VMTC(Method):
    """Keep primary tokens, merge the redundant ones into clusters.

    Attributes:
        primary: share of the budget that goes to primary tokens, in [0, 1].
        rounds: of k-means, at most, >= 0.
    """

    card = Card(
        name="vmtc",
        title="Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image Redundancy",
        paper="arXiv:2411.15453",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "The module that clusters tokens before the language model, without the one that inhibits attention inside it.",
            "The paper trains the model with it; here nothing is trained.",
            "Re-interpretation: three quarters of the budget are primary tokens, the others clusters.",
            "Re-interpretation: k-means takes 10 rounds at most, and starts from the token with the lowest attention and "
            "whatever is farthest from all picks so far.",
            "Re-interpretation: a merged token stands at the place of the member nearest to its cluster's centre, and "
            "tokens stay in the picture's order.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    primary: float = 0.75
    rounds: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.primary <= 1:
            raise ValueError(f"primary={self.primary} is not a share in [0, 1]")
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds} is below 0")

    def __call__(self, view: View) -> Reduction:
        attention = known(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        # Unless nothing is to be merged, there is a cluster for what would otherwise be lost.
        few = view.k if self.primary == 1 else min(nearest(self.primary * view.k), view.k - 1)
        kept = top(attention, few)
        if few == view.k:
            return Reduction.drop(kept, view.n)
        rest = torch.ones_like(attention, dtype=torch.bool).index_fill_(0, kept, False).nonzero()[:, 0]
        clusters = view.k - few
        points = unit(view.x[rest])[0]
        home, _ = farthest_points(points, attention[rest].argmin(0, keepdim=True), clusters)
        home, member = kmeans(points, home, clusters, self.rounds, spherical=True)

        slot = torch.arange(few, device=kept.device)
        assign = torch.empty_like(attention, dtype=torch.long)
        assign[kept], assign[rest] = slot, few + home
        # Attention may be zero for a whole cluster, whose mean is then the plain one.
        total = torch.zeros(clusters, device=kept.device).index_add_(0, home, attention[rest])
        weight = attention.index_copy(0, rest, torch.where(total[home] > 0, attention[rest], 1))
        weight = weight.index_fill(0, kept, 1)
        return Reduction.groups(assign, torch.cat([kept, rest[member]]), weight).sorted()
