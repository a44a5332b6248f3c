"""DART (arXiv:2502.11494): what duplicates a few pivots goes, whatever its importance.

A handful of tokens become pivots, from the picture and from the question, chosen by nothing but their norm. Each pivot
keeps the tokens that resemble it least. No token is ever called important.

What is odd: pivots take turns, and each takes its whole share at once, so an early pivot may take tokens that are copies
of a later pivot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..method import Card, Method
from ..parts.pivots import strongest, unlike
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
        own = strongest(view.x, min(self.pivots, view.k))
        told = unit(words[strongest(words, self.words)])[0]
        likeness = torch.cat([rows[own], told.to(rows.dtype)]) @ rows.mT  # (p, n)
        return Reduction.drop(unlike(likeness, own, view.k).sort().values, view.n)
