"""SparseVLM (arXiv:2410.04417): words that have to do with the picture say which visual tokens matter.

Most words of a prompt ask nothing of the picture; those that do are its raters. At three stops visual tokens are ranked by
the attention of the raters alone, averaged over heads and raters, and the best stay. Of the others the better ones are not
lost: about ten at a time they are clustered around density peaks, and every cluster stays as its mean.

What is odd: the paper reads off the rank of the raters' attention how many tokens to keep; its code has fixed numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, LayerMethod
from ..parts.cluster import density_peaks
from ..parts.pace import before, check_spots, geometric
from ..parts.score import known
from ..parts.select import ranked
from ..tokens import Reduction, View

CLUSTER = 10  # recycled tokens that make one


def votes(visual: Tensor, text: Tensor) -> Tensor:
    """(q,) how much each word has to do with the picture, both as they entered the language model.

    Every visual token gives one vote, split over the words by a softmax of dot products; the mean over visual tokens.

    Args:
        visual: (n, d).
        text: (q, d).
    """
    return (visual.float() @ text.float().mT).softmax(1).mean(0)


def raters(vote: Tensor) -> Tensor:
    """(q,) True for words with more than the mean of the votes (q,); for all if none has."""
    above = vote > vote.mean()
    return above | ~above.any()


def relation(rows: Tensor, rate: Tensor) -> Tensor:
    """(n,) mean attention (h, q, n) of the words that rate (q,), over heads and words."""
    return rows.float().mean(0)[rate].mean(0)


@dataclass(frozen=True)
class SparseVLM(LayerMethod):
    """Keep what the words about the picture attend to, and clusters of the best of the rest.

    ``keep`` is what the last stop leaves, clusters included. With ``counts`` or ``adaptive`` a plan may leave it out.

    Attributes:
        layers: the first layer of each further stage; shares of the depth below 1.0, or layers.
        recycle: share of the tokens ranked out that are clustered, 0 to 1; 0 drops them all.
        counts: what each stop leaves, in shares of the tokens at the first; empty leaves the same share at each.
        adaptive: take the number from the rank of the raters' attention: rank * scale + bias.
        scale, bias: of that rule.
    """

    card = Card(
        name="sparsevlm",
        title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        paper="arXiv:2410.04417",
        code="https://github.com/Gumpest/SparseVLMs",
        licence="Apache-2.0",
        stages=("layers",),
        needs=("first", "first_text", "text_rows"),
        guidance="question",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "Clusters count within the budget, so that `keep` is what is left; the authors add them on top. Where the budget "
            "is smaller than their number, one token is kept and the rest of the budget is clusters.",
            "A cluster stands at its centre, in the picture's order; the authors append clusters after the kept tokens and "
            "number positions anew. Means are weighted by the number of original tokens in each.",
            "The same share leaves at each stop; the authors have a table for four budgets, and "
            "`counts=(0.521, 0.347, 0.191)` is its first row (300, 200, 110 of 576), without the clusters.",
            "`adaptive` is off, because the budget says how much stays. With it, or with `counts`, a budget that is given "
            "all the same binds the last stop and is the least that earlier ones leave; without one, the rank decides and "
            "the number depends on the picture.",
            "Version 2 of the code (a correction for rotary distance, the best 14 heads) is not here.",
        ),
    )

    layers: tuple[float, ...] = (3 / 32, 7 / 32, 0.5)
    recycle: float = 0.3
    counts: tuple[float, ...] = ()
    adaptive: bool = False
    scale: float = 13.5
    bias: float = 0.0

    def __post_init__(self) -> None:
        check_spots("layers", self.layers)
        if not 0 <= self.recycle <= 1:
            raise ValueError(f"recycle={self.recycle} is no share, 0 to 1")
        if self.counts and (len(self.counts) != len(self.layers) or not all(0 < share <= 1 for share in self.counts)):
            raise ValueError(
                f"counts={self.counts!r} has no share above 0, up to 1, for each of {len(self.layers)} stops"
            )
        if self.counts and self.adaptive:
            raise ValueError("counts and adaptive both say how much stays")

    @property
    def settled(self) -> bool:
        return self.adaptive or bool(self.counts)

    def stops(self, depth: int) -> Sequence[int]:
        return before(self.layers, depth)

    def raters(self, view: View) -> Tensor:
        """(q,) True for the words that rate: what the picture's tokens, as they entered, resemble more than they do most."""
        return raters(known(votes(view.need("first"), view.need("first_text"))))

    def score(self, view: View) -> Tensor:
        """(n,) mean attention of the raters."""
        return relation(view.need("text_rows"), self.raters(view))

    def by_rank(self, rows: Tensor) -> int:
        """Tokens to keep by the rank of the raters' attention (r, n)."""
        n = rows.shape[1]
        rank = int(torch.linalg.matrix_rank(rows))
        return n if rank == n else max(1, min(int(rank * self.scale + self.bias), n - 1))

    def count(self, view: View) -> int:
        """Tokens to leave at this stop, clusters included."""
        if not self.settled:
            return geometric(view)
        if self.adaptive:
            known(self.score(view))
            told = self.by_rank(view.need("text_rows").float().mean(0)[self.raters(view)])
        else:
            told = max(1, nearest(self.counts[-1 - view.left] * (view.entered or view.n)))
        if view.k == view.n:  # no budget: with one, more than that are left until the last stop
            return min(told, view.n)
        return view.k if view.left == 0 else min(max(told, view.k + 1), view.n)

    def recycled(self, out: int) -> tuple[int, int]:
        """(tokens, clusters) that are made of ``out`` >= 1 tokens ranked out."""
        if not self.recycle:
            return 0, 0
        tokens = min(int(self.recycle * out) + 1, out)
        return tokens, tokens // CLUSTER + 1

    def __call__(self, view: View) -> Reduction:
        n, k = view.n, self.count(view)
        if k == n:
            return Reduction.identity(n, view.x.device)
        # Kept and clusters together grow by one token or stay, as more are kept, and reach n: they meet every k.
        most = bisect_right(range(1, n), k, key=lambda kept: kept + self.recycled(n - kept)[1])
        kept = max(1, most)
        order = ranked(self.score(view))
        if kept == k:
            return Reduction.drop(order[:k].sort().values, n)
        again = order[kept : kept + self.recycled(n - kept)[0]].sort().values
        home, centre = density_peaks(view.x[again], k - kept, k - kept)
        assign = torch.full_like(order, -1)
        assign[order[:kept]] = torch.arange(kept, device=order.device)
        assign[again] = home + kept
        return Reduction.groups(assign, torch.cat([order[:kept], again[centre]]), view.size).sorted()
