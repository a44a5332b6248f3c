"""ToDRE, stage two (arXiv:2505.18757): once the text hardly looks at the picture, the picture leaves.

At a late layer the share of the text's attention that goes to the picture is added up, heads and text tokens averaged.
Below a threshold all visual tokens leave, and the rest of the layers run on text alone; otherwise all stay. One layer is
looked at by default, so that no other has to compute any attention for it.

What is odd: it is all or nothing, so that two pictures of nearly the same share may cost quite different amounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..parts.score import known
from ..tokens import Reduction, View


@dataclass(frozen=True)
class ToDREExit(LayerMethod):
    """All visual tokens leave at the first candidate layer where the text gives them less attention than ``tau``.

    It needs no budget, and any budget but keep=1.0, which turns it off, changes nothing.

    Attributes:
        layers: candidates: the first layer without the picture, or shares of the depth below 1.0.
        tau: share of attention from 0 (never leave) to 1; larger leaves more often.
    """

    card = Card(
        name="todre_exit",
        title="ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
        paper="arXiv:2505.18757",
        stages=("layers",),
        needs=("text_rows",),
        guidance="question",
        count="content",
        positions="original",
        modality=("image", "video"),
        mechanism="attention",
        differences=(
            "Stage two only; `todre:keep=0.1 > todre_exit` is the paper's pair.",
            "The paper also asks that visual tokens give the text little attention. Text that follows the picture gets none "
            "under a causal mask, so that only the other direction is looked at.",
            "Every picture by itself, by the share that it gets; the paper adds up all visual tokens.",
            "Re-interpretation: a candidate 0.875 looks at the last layer within the first 7/8 of the depth, and the next "
            "one runs without the picture.",
            "Re-interpretation: positions stay, and layers before the exit keep the picture in their caches; the paper says "
            "neither.",
        ),
    )

    layers: tuple[float, ...] = (0.875,)
    tau: float = 0.10

    def __post_init__(self) -> None:
        check_spots("layers", self.layers)
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau} is not a share in [0, 1]")

    @property
    def settled(self) -> bool:
        return True

    def stops(self, depth: int) -> Sequence[int]:
        return before(self.layers, depth)

    def score(self, view: View) -> Tensor:
        """(n,) attention that each token gets, mean over heads and text; their sum is the picture's share."""
        return known(view.need("text_rows").float().mean((0, 1)))

    def __call__(self, view: View) -> Reduction | None:
        gone = bool(self.score(view).sum() < self.tau)
        return Reduction.nothing(view.n, view.x.device) if gone else None
