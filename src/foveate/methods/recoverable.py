"""Recoverable Compression (arXiv:2409.01179): prune by sight, win back what the question needs, fold the rest together.

First the tokens stand out that the tower attends to. Among the others, those that stand out by their likeness to the
question are recovered. What is then left is clustered, and each cluster becomes one token.

What is odd: how many stay is read off the scores, outliers among their neighbours in value, so that a plain picture and a
plain question leave little more than the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, Method
from ..parts.cluster import density_peaks
from ..parts.outliers import above_fence, local_outliers
from ..parts.score import known, relevance
from ..parts.select import top
from ..parts.tiles import allocate
from ..tokens import Reduction, View

FILTERS = ("lof", "iqr")


@dataclass(frozen=True)
class Recoverable(Method):
    """Keep salient tokens, recover relevant ones, merge the rest into clusters.

    Attributes:
        adaptive: let outliers decide how many are kept and recovered, the paper's rule; never more than the budget in all.
            Otherwise the budget is met, divided in the proportion that they give.
        filter: "lof", local outlier factor above 1.5 and score above the median; or "iqr", above the third quartile by
            more than 1.5 times the distance of the quartiles.
        clusters: merged tokens as a share of all tokens, in (0, 1].
    """

    card = Card(
        name="recoverable",
        title="Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information",
        paper="arXiv:2409.01179",
        needs=("attention", "question"),
        guidance="question",
        mechanism="query",
        differences=(
            "The number of tokens is the budget by default; the paper's rule is the option `adaptive`.",
            "Re-interpretation: the dynamic filter is a local outlier factor of the scores (20 neighbours); the paper's "
            "formula was not at hand.",
            "Re-interpretation: clusters are density peaks (5 neighbours), one for every 50 tokens, each the plain mean.",
            "Re-interpretation: relevance is the mean cosine with the question's words in the language model's embedding "
            'space, unless the view carries the extra "relevance" of a text encoder.',
            "What stands out to the eye is measured by attention, not by the product with the CLS token, which models do "
            "not hand on.",
            "A merged token stands at the place of its cluster's centre; the paper appends merged tokens after the others.",
        ),
    )

    adaptive: bool = False
    filter: str = "lof"
    clusters: float = 0.02

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ValueError(f"filter={self.filter!r} is not one of {', '.join(FILTERS)}")
        if not 0 < self.clusters <= 1:
            raise ValueError(f"clusters={self.clusters} is not a share in (0, 1]")
        if self.adaptive:
            object.__setattr__(self, "card", replace(self.card, count="content"))

    def standing_out(self, score: Tensor) -> int:
        """How many of the scores (n,) stand out upwards."""
        if len(score) < 2:
            return 0
        if self.filter == "iqr":
            return int(above_fence(score).sum())
        return int(((local_outliers(score) > 1.5) & (score > score.median())).sum())

    def split(self, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What happens to each token; the first two and the merged ones together are all of them.

        Returns:
            (v,) tokens kept by sight, (t,) recovered by the question, (c,) centres of clusters, and (n,) the cluster of
            each merged token, -1 for tokens kept or recovered.
        """
        seen = known(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        asked = relevance(view)

        def others(*kept: Tensor) -> Tensor:
            return torch.ones_like(seen, dtype=torch.bool).index_fill_(0, torch.cat(kept), False).nonzero()[:, 0]

        found = max(1, self.standing_out(seen))
        wish = [found, self.standing_out(asked[others(top(seen, found))]), max(1, nearest(self.clusters * view.n))]
        least = [int(view.k > 1), int(view.k > 2), 1]  # the rest must go somewhere
        if not self.adaptive or sum(wish) > view.k:
            more = [max(0, w - one) for w, one in zip(wish, least, strict=True)]
            spare = view.k - sum(least)
            wish = [a + b for a, b in zip(least, allocate(more, spare, [spare] * 3), strict=True)]
        kept = top(seen, wish[0])
        rest = others(kept)
        recovered = rest[top(asked[rest], wish[1])]
        rest = others(kept, recovered)
        home, centre = density_peaks(view.x[rest], wish[2])
        cluster = torch.full_like(seen, -1, dtype=torch.long)
        cluster[rest] = home
        return kept, recovered, rest[centre], cluster

    def __call__(self, view: View) -> Reduction:
        kept, recovered, centre, cluster = self.split(view)
        anchor = torch.cat([kept, recovered, centre])
        alone = len(kept) + len(recovered)
        assign = cluster + alone
        assign[anchor[:alone]] = torch.arange(alone, device=anchor.device)
        return Reduction.groups(assign, anchor).sorted()
