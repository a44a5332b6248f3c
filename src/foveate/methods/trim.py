"""TRIM (arXiv:2409.10994): keep what the question asks for, and one token for everything else.

Each token's similarity to the question becomes a share of attention by a softmax. Outliers of these shares stay; the mean
of all the others is one more token.

What is odd: nothing but the question counts. Without an outlier a single mean token is left of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..method import Card, Method
from ..parts.outliers import above_fence
from ..parts.score import relevance
from ..parts.select import top
from ..tokens import Reduction, View


@dataclass(frozen=True)
class TRIM(Method):
    """Keep the tokens most relevant to the question, and the mean of the others.

    Attributes:
        adaptive: let the relevance decide how many stay, the paper's rule: those whose share lies above the third
            quartile by more than 1.5 times the distance of the quartiles. Never more than the budget in all.
    """

    card = Card(
        name="trim",
        title="Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs",
        paper="arXiv:2409.10994",
        code="https://github.com/FreedomIntelligence/TRIM",
        licence="",
        needs=("question",),
        guidance="question",
        mechanism="query",
        differences=(
            "The number of tokens is the budget by default, the mean token included; the paper's rule is the option "
            "`adaptive`.",
            "Re-interpretation: relevance is the mean cosine with the question's words in the language model's embedding "
            'space, unless the view carries the extra "relevance" of a text encoder such as CLIP\'s, as the authors use.',
            "The authors' code keeps the tokens *least* similar to the text, because CLIP's patch similarities are "
            'known to be inverted; whoever fills "relevance" turns the sign.',
            "The mean token stands at the place of the last token in it; the authors append it after all.",
            "The authors' published numbers are those of a model that was fine-tuned with it.",
        ),
    )

    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.adaptive:
            object.__setattr__(self, "card", replace(self.card, count="content"))

    def __call__(self, view: View) -> Reduction:
        score = relevance(view)
        if view.k == view.n and not self.adaptive:
            return Reduction.identity(view.n, view.x.device)
        few = view.k - 1
        if self.adaptive:
            few = min(few, int(above_fence(score.softmax(0)).sum()))
        kept = top(score, few)
        rest = torch.ones(view.n, dtype=torch.bool, device=kept.device).index_fill_(0, kept, False).nonzero()[:, 0]
        assign = torch.full((view.n,), few, device=kept.device)
        assign[kept] = torch.arange(few, device=kept.device)
        return Reduction.groups(assign, torch.cat([kept, rest[-1:]])).sorted()
