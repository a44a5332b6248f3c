"""Token-level Correlation-guided Compression (arXiv:2407.14439): pages in crops, blank crops cost little.

A token is redundant if very many of its crop look like it; the share that is not redundant is the crop's density, and gives
the crop its share of the tokens. Within a crop, outliers of the last layer's attention stay first, then those an early
layer attends to; what goes is folded into the most similar token that stays.

What is odd: late layers point at few tokens that stand for the whole crop, early ones at strokes and edges; both are
wanted, and the early layer is asked to do most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, Method
from ..parts.outliers import above_fence
from ..parts.score import known
from ..parts.select import top
from ..parts.similarity import cosines
from ..parts.tiles import allocate
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Correlation(Method):
    """Share the budget among tiles by density, keep outliers and locally attended tokens, fold the others into them.

    Attributes:
        adaptive: let density decide how many tokens stay, the paper's rule; never more than the budget in all. Otherwise
            the budget is met, divided in the proportion that density gives.
        early: the layer with local attention, as a share of the tower's depth in [0, 1).
        alike: cosine of keys above which two tokens are alike; lower makes more tokens redundant.
        many: a token is redundant if more than this share of its tile is like it; in [0, 1].
        seed: draw the local tokens by chance, in proportion to attention, as in the paper; None takes the highest.
    """

    card = Card(
        name="correlation",
        title="Token-level Correlation-guided Compression for Efficient Multimodal Document Understanding",
        paper="arXiv:2407.14439",
        code="https://github.com/JiuTian-VL/TokenCorrCompressor",
        licence="",
        features="before",
        needs=("attention", "early", "keys"),
        mechanism="attention",
        differences=(
            "The number of tokens is the budget by default; the paper's rule is the option `adaptive`.",
            "Re-interpretation: both thresholds of redundancy (0.9, and a tenth of the tile) and the early layer (a third "
            "of the depth) are our choice; the authors' values were not at hand.",
            "Re-interpretation: the outliers come out of the tile's share, and so do the local tokens.",
            "Re-interpretation: a dropped token joins the one kept token with the most similar key, weighted by early "
            "attention, and the weights of a group add up to one.",
            "The highest local tokens are taken instead of a random draw, unless a seed is given.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    adaptive: bool = False
    early: float = 1 / 3
    alike: float = 0.9
    many: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.early < 1:
            raise ValueError(f"early={self.early} is not a share of the tower's depth in [0, 1)")
        if not -1 <= self.alike <= 1:
            raise ValueError(f"alike={self.alike} is not a cosine in [-1, 1]")
        if not 0 <= self.many <= 1:
            raise ValueError(f"many={self.many} is not a share in [0, 1]")
        if self.adaptive:
            object.__setattr__(self, "card", replace(self.card, count="content"))

    def density(self, likeness: Tensor) -> float:
        """Share of a tile's tokens that are not redundant. likeness: (n, n) cosines of keys, diagonal left out."""
        fellows = (likeness > self.alike).sum(1)
        return float((fellows <= self.many * len(likeness)).float().mean())

    def __call__(self, view: View) -> Reduction:
        whole = known(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        local = known(view.need("early").float().mean(0)).clamp(min=1e-12)
        keys, chance = view.need("keys"), local.log()
        if self.seed is not None:
            mixed = (self.seed * 1_000_003 + view.ordinal) * 1_000_003 + view.n
            draw = torch.rand(view.n, generator=torch.Generator().manual_seed(mixed % (1 << 63)))
            chance = chance - (-draw.clamp(min=1e-12).log()).clamp(min=1e-12).log().to(chance.device)  # Gumbel noise
        tiles = [(view.tile == tile).nonzero()[:, 0] for tile in view.tile.unique().tolist()]
        likeness = [cosines(keys[mine]).fill_diagonal_(-torch.inf) for mine in tiles]
        wish = [max(1, nearest(self.density(near) * len(near))) for near in likeness]
        total = min(view.k, sum(wish)) if self.adaptive else view.k
        assign, anchor = torch.full_like(view.tile, -1), []
        start = 0
        for mine, near, k in zip(tiles, likeness, allocate(wish, total, [len(t) for t in tiles]), strict=True):
            if not k:
                continue
            outlier = above_fence(whole[mine])
            first = top(torch.where(outlier, whole[mine], -torch.inf), min(k, int(outlier.sum())))
            rest = top(chance[mine].index_fill(0, first, -torch.inf), k - len(first))
            kept = torch.cat([first, rest]).sort().values
            home = near[:, kept].argmax(1)
            home[kept] = torch.arange(k, device=home.device)
            assign[mine] = home + start
            anchor.append(mine[kept])
            start += k
        return Reduction.groups(assign, torch.cat(anchor), local).sorted()
