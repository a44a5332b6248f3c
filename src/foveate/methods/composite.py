"""Composite attention, from EE-MLLM (arXiv:2408.11795): visual tokens are looked at, but do not look at each other.

In every layer only text asks; keys and values come from picture and text. What a picture's tokens would get from attention
is left out, while they go through the rest of the layer, with its own weights, so that they stay at the depth of the text.

What is odd: an ordinary model was not trained for it, and its visual tokens have exchanged all they will before layer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Card, WorkMethod
from ..parts.pace import before, check_spots
from ..routes import SEES, Work
from ..tokens import View


@dataclass(frozen=True)
class Composite(WorkMethod):
    """In some layers visual tokens do not attend to each other.

    Attributes:
        start: the first such layer, or a share of the depth below 1.0.
        end: the first layer after them; 0 for none.
        sees: "nothing" (attention adds nothing to a visual token) or "itself".
    """

    card = Card(
        name="composite",
        title="EE-MLLM: A Data-Efficient and Compute-Efficient Multimodal Large Language Model",
        paper="arXiv:2408.11795",
        stages=("layers",),
        count="content",
        positions="original",
        mechanism="transformation",
        differences=(
            "The paper trains a model with it; here it is switched on in a model that was not, in layers of your choice.",
            'Re-interpretation: whether a visual token keeps its own value (`sees="itself"`) is not said where we could read; '
            "the arithmetic that the paper saves fits the reading without.",
            "The projections of queries and of attention's output still run for visual tokens.",
        ),
    )

    start: float = 0
    end: float = 0
    sees: str = "nothing"

    def __post_init__(self) -> None:
        check_spots("start", self.start)
        check_spots("end", self.end)
        if self.sees not in SEES[1:]:
            raise ValueError(f"sees={self.sees!r} is not one of {', '.join(SEES[1:])}")

    def stops(self, depth: int) -> Sequence[int]:
        (first,) = before((self.start,), depth, 0)
        last = before((self.end,), depth, 0)[0] if self.end else depth
        return range(first, max(last, first + 1))

    def __call__(self, view: View) -> Work:
        return Work(sees=self.sees)
