"""LLaVolta (arXiv:2406.20092), at test time: average the visual tokens before one layer, s at a time.

Visual tokens are redundant already in the first layers. Their states are pooled over the sequence, every s in raster order
becoming one, and deeper layers run on that. The paper trains in stages, with less pooling in each and none in the last;
pooling the trained model at test time is its first experiment.

What is odd: the sequence is pooled and not the grid, so that a window may hold the end of one row and the start of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..tokens import Reduction, View


@dataclass(frozen=True)
class LLaVolta(LayerMethod):
    """Average s neighbours in raster order before one layer; s is the smallest that meets the budget.

    Attributes:
        layer: the first layer that runs on fewer tokens, 1 or more; or a share of the depth below 1.0.
        stride: tokens that become one; a plan may then leave out ``keep``, which can only make it larger. 0 takes it from
            ``keep``.
        remainder: whether tokens that are left over at the end make a shorter group; else they are dropped.
    """

    card = Card(
        name="llavolta",
        title="LLaVolta: Efficient Multi-modal Models via Stage-wise Visual Context Compression",
        paper="arXiv:2406.20092",
        code="https://github.com/Beckschen/LLaVolta",
        stages=("layers",),
        count="grid",
        positions="original",
        mechanism="transformation",
        differences=(
            "Test time only: the training, whose pooling gets lighter from stage to stage, is not here.",
            "The stride is the smallest whole number that meets the budget.",
            "A group stands at its middle token, the earlier of two; the authors average positions and cut the fraction off, "
            "which is the same unless positions have gaps, or are so large that half precision rounds them.",
            "Tokens that do not fill a last group make a shorter one; the authors drop them (`remainder=False`).",
            "Means are weighted by the number of original tokens in each, which is one unless an earlier step merged.",
        ),
    )

    layer: float = 2
    stride: int = 0
    remainder: bool = True

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)
        if self.stride < 0:
            raise ValueError(f"stride={self.stride} is below 0")

    @property
    def settled(self) -> bool:
        return self.stride > 0

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def __call__(self, view: View) -> Reduction:
        n, device = view.n, view.x.device
        stride = min(max(self.stride, -(-n // view.k)), n)
        if stride == 1:
            return Reduction.identity(n, device)
        groups = -(-n // stride) if self.remainder else n // stride
        assign = torch.arange(n, device=device) // stride
        start = torch.arange(groups, device=device) * stride
        last = (start + stride).clamp(max=n) - 1
        return Reduction.groups(torch.where(assign < groups, assign, -1), (start + last) // 2, view.size)
