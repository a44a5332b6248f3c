"""VTW, visual token withdrawal (arXiv:2405.05803): from some layer on the picture is not needed at all.

What the text wants of a picture has moved into the text's own states by the middle of the model. From layer K on all visual
tokens leave, and deeper layers run on text alone. No score, no question, no map.

What is odd: nothing about the picture decides; K is found once for a model, as the first layer where withdrawing leaves the
next token's distribution as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..budget import nearest
from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..tokens import Reduction, View


@dataclass(frozen=True)
class VTW(LayerMethod):
    """All visual tokens leave before one layer.

    ``keep`` is the share of the layers that see the picture, and so the mean over layers; or name the layer.

    Attributes:
        layer: the first layer without them (K), or a share of the depth below 1.0; 0 takes it from ``keep``.
    """

    card = Card(
        name="vtw",
        title="Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
        paper="arXiv:2405.05803",
        code="https://github.com/lzhxmu/VTW",
        licence="Apache-2.0",
        stages=("layers",),
        count="content",
        budget="mean",
        positions="original",
        mechanism="transformation",
        differences=(
            "The budget, which the paper does not have, names the layer: the mean over layers comes nearest to it.",
            "`foveate search --method vtw` finds the layer on samples of yours, by the paper's rule (Kullback-Leibler "
            "divergence of the next token).",
        ),
    )

    layer: float = 0

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)

    @property
    def settled(self) -> bool:
        return self.layer > 0

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth) if self.settled else range(1, depth)

    def __call__(self, view: View) -> Reduction | None:
        last = view.layer if self.settled else max(1, nearest(view.depth * view.k / (view.entered or view.n)))
        return Reduction.nothing(view.n, view.x.device) if view.layer >= last else None
