"""IDPruner (arXiv:2602.13315): maximal marginal relevance, the balance of search engines, for tokens.

One token after another is picked: it should be important, and unlike the most similar token already picked.

What is odd: the two are simply weighed against each other, importance stretched to [0, 1] against a cosine, so that an
outlier in importance squeezes all others together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Card, Method
from ..parts.greedy import marginal
from ..parts.score import known, minmax
from ..parts.similarity import cosines
from ..tokens import Reduction, View


@dataclass(frozen=True)
class IDPruner(Method):
    """Keep k tokens by maximal marginal relevance of attention and cosines.

    Attributes:
        balance: weight of importance against diversity, in [0, 1]; 1 is the plain ranking by importance.
        together: tokens picked per step; more is faster, and those of one step may resemble each other.
    """

    card = Card(
        name="idpruner",
        title="IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs",
        paper="arXiv:2602.13315",
        code="https://github.com/Tencent/AngelSlim",
        licence="",
        needs=("attention",),
        mechanism="similarity",
        differences=(
            "Re-interpretation: importance is the attention of the vision tower. The authors' comes from a scorer that "
            "they trained for each model.",
            "With several tiles the budget is the image's, and tiles compete for it.",
        ),
    )

    balance: float = 0.5
    together: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance={self.balance} is not a weight in [0, 1]")
        if self.together < 1:
            raise ValueError(f"together={self.together} is not a number of tokens, 1 or more")

    def __call__(self, view: View) -> Reduction:
        importance = minmax(known(view.need("attention").float().mean(0)))  # (h, n) -> (n,)
        picked = marginal(cosines(view.x), importance, view.k, self.balance, self.together)
        return Reduction.drop(picked.sort().values, view.n)
