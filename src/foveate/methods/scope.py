"""SCOPE (arXiv:2510.24214): pick tokens that cover the picture, the salient ones first.

A set of tokens covers a token as far as the most similar of the set resembles it. What a candidate would add to the
coverage of all tokens, times its saliency, decides who is picked next.

What is odd: coverage starts at 0 for everybody, so a token that nothing resembles is never worth covering by anything
but itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, Method
from ..parts.greedy import cover
from ..parts.score import known
from ..parts.similarity import cosines
from ..tokens import Reduction, View


@dataclass(frozen=True)
class SCOPE(Method):
    """Keep k tokens by the greedy product of coverage gain and saliency.

    Attributes:
        alpha: power of the saliency, >= 0; 0 is coverage alone, more follows saliency more closely.
    """

    card = Card(
        name="scope",
        title="SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs",
        paper="arXiv:2510.24214",
        code="https://github.com/kinredon/SCOPE",
        licence="",
        features="before",
        needs=("attention",),
        mechanism="similarity",
        differences=(
            "The next token is found by bounds on the gains instead of all gains anew; it is the same token.",
            "With several tiles the budget is the image's, and tiles compete for it; the authors divide it equally.",
            "Saliency is the mean over heads, not their sum, which changes no choice.",
            "Towers without a CLS token: saliency is the attention that a token receives on average.",
        ),
    )

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha} is not a power, 0 or more")

    def order(self, view: View) -> Tensor:
        """(k,) the tokens in the order they are picked."""
        saliency = known(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        weight = saliency.double().clamp(min=0) ** self.alpha
        return cover(cosines(view.x), view.k, weight, floor=0.0)

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(self.order(view).sort().values, view.n)
