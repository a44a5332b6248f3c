"""VTC-CLS (arXiv:2412.05819): one layer of the tower is one opinion; add up what the CLS token looks at in several.

Attention of the CLS token changes its mind from layer to layer. The sum over a range of late layers ranks tokens more
steadily than any single one of them.

What is odd: the last layer is left out of the sum, and which layers do best differs from task to task.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, ScoreMethod
from ..tokens import View

LAYERS = ("both", "early", "late")


@dataclass(frozen=True)
class VTCCLS(ScoreMethod):
    """Keep the tokens that the CLS token attends to most, summed over tower layers.

    Attributes:
        early: the first layer of the ensemble, as a share of the tower's depth in [0, 1). Counted from 0, layer 16 of
            the layers 0 to 23 by default.
        layers: "both" adds the two layers; "early" or "late" asks one of them alone.
    """

    card = Card(
        name="vtc_cls",
        title="[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs",
        paper="arXiv:2412.05819",
        code="https://github.com/THU-MIG/VTC-CLS",
        licence="Apache-2.0",
        features="before",
        needs=("attention", "early"),
        mechanism="attention",
        differences=(
            "The sum has two layers, the first and the last of the range. The authors add every layer between them too; "
            "the two ends stand for their mean.",
            "The range ends at the layer whose features the model uses, as in the authors' code, which leaves out the "
            "last layer.",
            "With several tiles the budget is the image's, and tiles compete for it.",
            "Towers without a CLS token: the score is the attention that a token receives on average.",
        ),
    )

    early: float = 16 / 23
    layers: str = "both"

    def __post_init__(self) -> None:
        if not 0 <= self.early < 1:
            raise ValueError(f"early={self.early} is not a share of the tower's depth in [0, 1)")
        if self.layers not in LAYERS:
            raise ValueError(f"layers={self.layers!r} is none of {', '.join(LAYERS)}")

    def score(self, view: View) -> Tensor:
        early, late = (view.need(name).float().mean(0) for name in ("early", "attention"))  # (h, n) -> (n,)
        return {"both": early + late, "early": early, "late": late}[self.layers]
