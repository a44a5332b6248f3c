"""G-Prune (arXiv:2501.02268): tokens as a graph; what information flows to is what represents the picture.

Similar tokens are linked. Each passes its norm on to its neighbours, the more similar the more, for a few rounds; what has
arrived, divided by the number of neighbours, is the score. Lone tokens keep their own and so do not vanish.

What is odd: similarity is sharpened so much (divided by 0.03) that a token sends most of its share to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, ScoreMethod
from ..parts.similarity import cosines
from ..tokens import View


@dataclass(frozen=True)
class GPrune(ScoreMethod):
    """Keep the tokens to which most information flows in the graph of similar tokens.

    Attributes:
        threshold: cosine from which two tokens are linked; higher leaves more tokens alone.
        temperature: > 0; lower sends more to the most similar neighbours.
        rounds: how often information is passed on, 0 or more.
    """

    card = Card(
        name="gprune",
        title="What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal Large Language "
        "Models from the Perspective of Graph",
        paper="arXiv:2501.02268",
        code="https://github.com/jytmelon/G-Prune",
        licence="",
        mechanism="similarity",
        differences=(
            "A row of scores is passed through the graph round by round; the authors' code takes the fifth power of the "
            "whole matrix, which gives the same.",
            "The number of tokens is the budget, rounded as everywhere here; the authors round down.",
            "With several tiles the budget is the image's, and tokens of all tiles are in one graph; the authors prune "
            "the overview and the mosaic of tiles apart.",
        ),
    )

    threshold: float = 0.5
    temperature: float = 0.03
    rounds: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is not a cosine in [0, 1]")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} is not above 0")
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds} is below 0")

    def score(self, view: View) -> Tensor:
        likeness = cosines(view.x).fill_diagonal_(1)  # every token is linked to itself
        cut = likeness < self.threshold
        # Softmax of likeness / temperature along each row, whose largest is the 1 on the diagonal.
        flow = likeness.sub_(1).div_(self.temperature).exp_().masked_fill_(cut, 0)
        whole = flow.sum(1)
        arrived = view.x.float().norm(dim=1)
        for _ in range(self.rounds):
            arrived = (arrived / whole) @ flow
        return arrived / (view.n - cut.sum(1))
