"""P-Sigmoid (arXiv:2412.00556): the number of tokens falls over the layers along a sigmoid.

What a search finds layer by layer looks like a falling sigmoid: nearly all tokens first, then a slope, then few. Given a
budget, two numbers say the rest, and they are found by Bayesian optimisation on samples (`foveate search`). Which tokens go
on is decided before every layer by the attention that the text gave them in the layer before.

What is odd: nothing measures where the model is done with the picture; the budget alone moves the slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Card
from ..parts.pace import bisect
from .gsearch import Scheduled, tokens


@dataclass(frozen=True)
class PSigmoid(Scheduled):
    """Keep in layer l of L a share ``low + (1 - low) * sigmoid(steep * (middle - l / L))``, whose mean is ``keep``.

    The middle is found by bisection: it is as deep as the budget allows.

    Attributes:
        rows: whose attention ranks: "text", the mean over the text after the image, or "last", its last token alone.
        steep: of the slope, above 0; larger is more sudden.
        low: share that is left far behind the slope, from 0 to 1; a budget that does not allow it lowers it.
    """

    card = Card(
        name="psigmoid",
        title="Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction",
        paper="arXiv:2412.00556",
        stages=("layers",),
        needs=("text_rows",),
        guidance="question",
        budget="mean",
        positions="original",
        mechanism="attention",
        differences=(
            "Re-interpretation: the sigmoid's form, a floor, a steepness and a middle that the budget sets, is the least that "
            "falls from all to few; the paper's was not found. Neither were its values: 10 and 0 are ours.",
            "Re-interpretation: the budget is the mean number of tokens over the layers, and the paper's may be operations.",
            "Re-interpretation: rows of the text after the image are averaged, over all heads; `rows=last` takes the last.",
            "Re-interpretation: counts are rounded up, positions stay, and each layer caches what it ran on.",
            "No layer keeps fewer than one token, and the first keeps all: a mean below that is not met.",
        ),
    )

    steep: float = 10.0
    low: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.steep < math.inf:
            raise ValueError(f"steep={self.steep} is no steepness above 0")
        if not 0 <= self.low <= 1:
            raise ValueError(f"low={self.low} is not a share in [0, 1]")

    def shares(self, middle: float, low: float, depth: int) -> list[float]:
        """Share of each layer; the first runs on all."""
        slope = [0.5 * (1 + math.tanh(self.steep * (middle - i / depth) / 2)) for i in range(1, depth)]
        return [1.0, *(low + (1 - low) * s for s in slope)]

    def lengths(self, n: int, k: int, depth: int) -> Sequence[int]:
        low, far = min(self.low, lowest(n, k, depth)), 60 / self.steep  # where the sigmoid is flat

        def curve(middle: float) -> list[int]:
            return [max(1, m) for m in tokens(self.shares(middle, low, depth), n)]

        return curve(bisect(lambda middle: sum(curve(middle)), k * depth, -far, 1 + far))


def lowest(n: int, k: int, depth: int) -> float:
    """The largest share that all layers but the first can keep, if k of n tokens are to run in the mean layer."""
    return max(0.0, (k * depth - n) // max(1, depth - 1) / n)
