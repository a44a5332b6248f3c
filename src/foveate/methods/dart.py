"""DART (arXiv:2502.11494): what duplicates a few pivots goes, whatever its importance.

A handful of tokens become pivots, from the picture and from the question, chosen by nothing but their norm. Each pivot
keeps the tokens that resemble it least. No token is ever called important.

What is odd: pivots take turns, and each takes its whole share at once, so an early pivot may take tokens that are copies
of a later pivot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.select import top
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DART(Method):
    """Keep pivots, and the tokens least similar to each pivot.

    Attributes:
        pivots: tokens of the picture that are pivots, 1 or more.
        words: tokens of the question that are pivots, 0 or more.
    """

    card = Card(
        name="dart",
        title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        paper="arXiv:2502.11494",
        code="https://github.com/ZichenWen1/DART",
        licence="Apache-2.0",
        needs=("question",),
        guidance="question",
        mechanism="similarity",
        differences=(
            "Re-interpretation: it runs before the language model. Pivots are those whose embeddings have the largest L1 "
            "norm, and cosines are those of embeddings; the authors look at the keys and hidden states of a layer inside.",
            "Pivots among words come from the question, not from all text.",
            "The budget is met exactly, pivots of the picture included: shares are rounded up and the last pivots get "
            "what is left. The authors round down.",
        ),
    )

    pivots: int = 4
    words: int = 4

    def __post_init__(self) -> None:
        if self.pivots < 1:
            raise ValueError(f"pivots={self.pivots} is not a number of tokens, 1 or more")
        if self.words < 0:
            raise ValueError(f"words={self.words} is below 0")

    def __call__(self, view: View) -> Reduction:
        rows, _ = unit(view.x)
        words = view.need("question")
        own = _strongest(view.x, min(self.pivots, view.k))
        told = unit(words[_strongest(words, self.words)])[0]
        likeness = torch.cat([rows[own], told.to(rows.dtype)]) @ rows.mT  # (p, n)
        return Reduction.drop(unlike(likeness, own, view.k).sort().values, view.n)


def _strongest(x: Tensor, k: int) -> Tensor:
    """(k,) rows of (n, d) with the largest L1 norm, strongest first."""
    norm = x.float().abs().sum(1)
    best = top(norm, k)
    return best[norm[best].sort(descending=True, stable=True).indices]


def unlike(likeness: Tensor, kept: Tensor, k: int) -> Tensor:
    """Tokens that resemble pivots least, pivot by pivot, each taking an equal share of those not yet taken.

    Args:
        likeness: (p, n) cosine of every pivot with every token, pivots in the order of their turns.
        kept: (m,) tokens that stay in any case.
        k: tokens to keep in all, m <= k <= n.

    Returns:
        (k,) distinct indices: ``kept``, then pivot by pivot, least similar first.
    """
    share = -((len(kept) - k) // len(likeness))  # rounded up
    for row in likeness:
        few = min(share, k - len(kept))
        free = row.index_fill(0, kept, torch.inf)
        kept = torch.cat([kept, free.sort(stable=True).indices[:few]])
    return kept
