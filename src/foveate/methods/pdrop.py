"""PyramidDrop (arXiv:2410.17247): all tokens are needed at first, and ever fewer the deeper it gets.

The layers are cut into stages, and at the end of each a fixed share of the tokens leaves. They are ranked by what the next
layer's last instruction token will attend to: its query and their keys, as that layer would compute them from the present
states.

What is odd: the ranking is the next layer's, so part of that layer runs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots, geometric
from ..parts.select import top
from ..tokens import Reduction, View


@dataclass(frozen=True)
class PyramidDrop(LayerMethod):
    """Drop the same share at the end of each stage, by the attention that the next layer's last prompt token will pay.

    ``keep`` is what the last stage leaves: 1/8 at three stops is the paper's half at each.

    Attributes:
        layers: the first layer of each further stage; shares of the depth below 1.0, or layers.
    """

    card = Card(
        name="pdrop",
        title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        paper="arXiv:2410.17247",
        code="https://github.com/Cooperx521/PyramidDrop",
        licence="Apache-2.0",
        stages=("layers",),
        needs=("ahead_row",),
        guidance="question",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "Kept tokens keep their positions; the authors number them anew at every stage, and shift later positions.",
            "The ranking sees the prompt of this turn; the authors' code knows one turn only.",
            "Counts are rounded to the nearest; the authors round down.",
        ),
    )

    layers: tuple[float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        check_spots("layers", self.layers)

    def stops(self, depth: int) -> Sequence[int]:
        return before(self.layers, depth)

    def score(self, view: View) -> Tensor:
        """(n,) attention that the last prompt token will pay in the next layer."""
        return view.need("ahead_row").float().mean(0)

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(top(self.score(view), geometric(view)), view.n)
