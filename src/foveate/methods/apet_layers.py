"""ApET (arXiv:2602.19870), its stage inside the language model: keep what a few states cannot explain.

The mathematics is that of the stage before the language model (``apet``): basis tokens far from each other rebuild all
states by least squares, the worst rebuilt stay, the others are averaged into the most similar that stays. Half way through
the layers, and again without attention.

What is odd: by then states hold what attention has mixed into them, so that the same error means something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..tokens import Reduction, View
from .apet import ApET


@dataclass(frozen=True)
class ApETLayers(LayerMethod):
    """Keep a basis and the states with the largest approximation error, average the others into these.

    Attributes:
        layer: the first layer that runs on fewer tokens, 1 or more; or a share of the depth below 1.0.
        basis: tokens that rebuild the others, 1 or more; of a small budget at most all but one.
        overwrite: put the basis in the place of the kept tokens with the smallest errors, as the authors' code does.
    """

    card = Card(
        name="apet_layers",
        title="ApET: Approximation-Error Guided Token Compression for Efficient VLMs",
        paper="arXiv:2602.19870",
        code="https://github.com/MaQianKun0/ApET",
        licence="",
        stages=("layers",),
        positions="original",
        mechanism="reconstruction",
        differences=(
            "The stage inside the language model only. The authors' default for both: `apet:keep=96 > apet_layers:keep=32`.",
            "Layer 16 of 32, the authors' example, is read as half of the depth.",
            "The basis begins with the token farthest from the mean; the authors' begins with a random one.",
            "The basis stands at its own places, and counts once; the option `overwrite` puts it where the authors do, in "
            "the order of their encoder stage. Theirs here is the order of errors.",
            "Re-interpretation: kept tokens keep their positions. We could not read how the authors number them.",
            "Errors and means are computed in float32, the small system in float64; the authors round to half precision.",
            "The authors' masks and labels count from the picture where they should count from the prompt; ours do not.",
        ),
    )

    layer: float = 0.5
    basis: int = 10
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)
        ApET(self.basis, self.overwrite)

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def __call__(self, view: View) -> Reduction:
        return ApET(self.basis, self.overwrite)(view)
