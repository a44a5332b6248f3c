"""FastV (arXiv:2403.06764): after layer 2 an image is worth half its tokens.

In the first layers a language model takes what it needs from the picture; after them the last token of the prompt, which
has to produce the answer, looks at few visual tokens. Before layer K its attention in layer K - 1, averaged over heads,
ranks them, and the best k stay.

What is odd: attention to a token is taken as its worth, although the end of the image gets more of it whatever it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..parts.select import top
from ..tokens import Reduction, View


@dataclass(frozen=True)
class FastV(LayerMethod):
    """Keep the tokens that the last prompt token attends to most in the layer before.

    Attributes:
        layer: the first layer that runs on fewer tokens (K), 1 or more; or a share of the depth below 1.0.
    """

    card = Card(
        name="fastv",
        title="An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large "
        "Vision-Language Models",
        paper="arXiv:2403.06764",
        code="https://github.com/pkunlp-icler/FastV",
        licence="",
        stages=("layers",),
        needs=("last_row",),
        guidance="question",
        positions="original",
        mechanism="attention",
        differences=(
            "Several images are ranked each by itself, with the budget of each; the authors take one span.",
            "The row is computed from the queries and keys of that layer, so that sdpa and flash stay on; the authors "
            "switch the layer to eager attention and average the whole map.",
            "Halves are rounded up where the authors round to even.",
        ),
    )

    layer: float = 2

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def score(self, view: View) -> Tensor:
        """(n,) attention of the last prompt token."""
        return view.need("last_row").float().mean(0)

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(top(self.score(view), view.k), view.n)
