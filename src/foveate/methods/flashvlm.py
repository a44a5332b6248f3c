"""FlashVLM (arXiv:2512.20561): what the tower looks at and what the question names, multiplied; and some background.

Words vote for tokens by cosine in the language model's embedding space. The votes are sharpened until few tokens are left,
and weigh in as powers beside the tower's attention. Half of the budget goes to the best; the other half thins out
the rest for variety, so that the background is never lost.

What is odd: after sharpening nearly all votes are equally small. The order is mostly that of attention, and the question
lifts a handful of tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.score import known, minmax
from ..parts.select import ranked
from ..parts.similarity import unit
from ..parts.thin import thin
from ..tokens import Reduction, View

FLOOR = 1e-6  # least share that attention or a vote can have


@dataclass(frozen=True)
class FlashVLM(Method):
    """Keep the best tokens by attention times votes of the question, and diverse ones of the rest.

    Attributes:
        background: share of the budget for diverse tokens of the rest, in [0, 1].
        text: power of the votes, in [0, 1]; attention has the power 1 - text.
    """

    card = Card(
        name="flashvlm",
        title="FlashVLM: Text-Guided Visual Token Selection for Large Multimodal Models",
        paper="arXiv:2512.20561",
        code="https://github.com/CaiKaitong/FlashVLM",
        licence="MIT",
        needs=("attention", "question"),
        guidance="question",
        mechanism="similarity",
        differences=(
            "Words count by their norm, as in the authors' code for Qwen. In their code for LLaVA norms are taken after "
            "they have been set to one.",
            "Words are those of the question. The authors take all text of the prompt (LLaVA), or only the text before "
            "the picture, which leaves the question out (Qwen).",
            "Variety is measured on features after the connector, as in the authors' code for Qwen.",
            "With several tiles the budget is the image's, and tiles compete for it.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    background: float = 0.5
    text: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.background <= 1:
            raise ValueError(f"background={self.background} is not a share in [0, 1]")
        if not 0 <= self.text <= 1:
            raise ValueError(f"text={self.text} is not a power in [0, 1]")

    @staticmethod
    def votes(x: Tensor, words: Tensor) -> Tensor:
        """(n,) sharpened votes of the words (q, d) for the tokens (n, d), in [0, 1]."""
        if not len(words):
            return torch.zeros(len(x), device=x.device)
        norm = words.float().norm(dim=1)
        gate = norm / norm.max().clamp(min=torch.finfo(norm.dtype).tiny)
        rows = unit(x)[0]
        match = rows @ unit(words)[0].to(rows.dtype).mT * gate  # (n, q)
        soft = ((match / 0.05).softmax(1) * match).sum(1)  # a soft maximum over words
        sharp = minmax((soft / 0.01).softmax(0) ** 2.5)
        cut = torch.quantile(sharp, 1 - 0.005)
        return minmax(torch.where(sharp < cut, 0.1 * sharp, sharp))

    def score(self, view: View) -> Tensor:
        """(n,) attention and votes, as powers."""
        attention = minmax(known(view.need("attention").float().mean(0)))  # (h, n) -> (n,)
        votes = self.votes(view.x, view.need("question"))
        return (1 - self.text) * attention.clamp(min=FLOOR).log() + self.text * votes.clamp(min=FLOOR).log()

    def __call__(self, view: View) -> Reduction:
        order = ranked(self.score(view))
        few = math.floor((1 - self.background) * view.k + 1e-9)
        rest = order[few:]
        kept = torch.cat([order[:few], rest[thin(view.x[rest], view.k - few)]])
        return Reduction.drop(kept.sort().values, view.n)
