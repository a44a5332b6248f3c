"""DivPrune (arXiv:2503.02175): keep the tokens that are as different from one another as possible.

The subset that maximises the smallest distance between any two of its tokens (max-min diversity), found greedily on
cosine distances. No attention, no question.

What is odd: the token to start from is the loneliest, the one whose nearest neighbour is farthest. That favours outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, Method
from ..parts.select import spread
from ..parts.similarity import cosines
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DivPrune(Method):
    """Keep k tokens by greedy max-min diversity of cosine distances."""

    card = Card(
        name="divprune",
        title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        paper="arXiv:2503.02175",
        code="https://github.com/vbdi/divprune",
        licence="",
        mechanism="similarity",
        differences=(
            "A token is picked once. The authors' code picks one token again and again when more are asked for than "
            "there are distinct ones, and the prompt then holds copies.",
            "A row of zeros has cosine 0 with others and 1 with other rows of zeros. In the authors' code it gives NaN, "
            "is picked first, and every later pick is token 0.",
            "Newline tokens are structure and neither compete nor repel; in the authors' code for LLaVA-1.6 they do both.",
            "The smallest distance to the picked tokens is kept up to date instead of computed anew at every pick.",
        ),
    )

    def order(self, view: View) -> Tensor:
        """(k,) the tokens in the order they are picked."""
        return spread(cosines(view.x), view.k)

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(self.order(view).sort().values, view.n)
