"""ToDRE, stage one (arXiv:2505.18757): start at what the tower looks at most, then pick what differs from all picks.

The first token is the one that the CLS token attends to most. Each next one has the smallest sum of cosines to those
already picked.

What is odd: the sum favours tokens that point away from the whole set, not those far from its nearest member, so two
picks may be close to each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.greedy import apart
from ..parts.score import known
from ..parts.similarity import cosines
from ..parts.tiles import boxes, overview
from ..tokens import Reduction, View

OBJECTIVES = ("max_sum", "k_center")


@dataclass(frozen=True)
class ToDRE(Method):
    """Keep k tokens by greedy diversity of cosines, from the token with the highest attention.

    Attributes:
        objective: "max_sum" minimises the sum of cosines to the picks (second version of the paper); "k_center" the
            largest of them (first version).
    """

    card = Card(
        name="todre",
        title="ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
        paper="arXiv:2505.18757",
        needs=("attention",),
        modality=("image", "video"),
        mechanism="similarity",
        differences=(
            "Stage one only: the stage inside the language model, which drops all visual tokens late, is another step.",
            "Re-interpretation: kept tokens stay in the order of the input; the paper lists them as picked.",
            "Towers without a CLS token: the start is the token that receives most attention.",
            "With tiles the start lies in the overview, if there is one.",
        ),
    )

    objective: str = "max_sum"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is not one of {', '.join(OBJECTIVES)}")

    def order(self, view: View) -> Tensor:
        """(k,) the tokens in the order they are picked."""
        attention = known(view.need("attention").float().mean(0))  # (h, n) -> (n,)
        if bool(view.tile.any()) and (whole := overview(boxes(view))) is not None:
            attention = torch.where(view.tile == whole, attention, -torch.inf)
        first = attention.argmax(0, keepdim=True)
        return apart(cosines(view.x), first, view.k, total=self.objective == "max_sum")

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(self.order(view).sort().values, view.n)
