"""ADSC, attention-driven self-compression (arXiv:2602.12618): thin visual tokens out evenly, and let attention repack.

Before chosen layers every second visual token leaves, whatever it shows. What it knew can only go on through the attention
of the layers before, and a model that is trained with such bottlenecks learns to pass it on in time. No score, no module.

What is odd: nothing about picture or question decides. The paper fine-tunes; without that the model was not told to repack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots, geometric
from ..parts.select import evenly
from ..tokens import Reduction, View
from .pool import Pool


@dataclass(frozen=True)
class ADSC(LayerMethod):
    """Keep evenly spaced tokens, the same share at each stop.

    ``keep`` is what the last stop leaves: 1/8 at three stops is half at each.

    Attributes:
        layers: the first layer of each further stage; shares of the depth below 1.0, or layers.
        factor: by how much each stop divides the tokens; a plan may then leave out ``keep``. 0 takes it from ``keep``.
        grid: space them evenly over rows and columns, and not over the raster order.
    """

    card = Card(
        name="adsc",
        title="Vision Token Reduction via Attention-Driven Self-Compression for Efficient Multimodal Large Language Models",
        paper="arXiv:2602.12618",
        stages=("layers",),
        positions="original",
        mechanism="transformation",
        differences=(
            "Re-interpretation: three stops, at a quarter, half and three quarters of the depth, and half the tokens at each "
            "come nearest to the saving that the abstract reports (53.7 % of the operations); the paper's layers and "
            "factors were not found.",
            "Re-interpretation: of each of m equal stretches in raster order the middle token stays. With `grid` it is the "
            "token nearest to the middle of each cell of a smaller grid, and where no grid has m cells the rest are evenly "
            "spaced among the others.",
            "Re-interpretation: kept tokens keep their positions, and each layer caches what it sees.",
            "The paper fine-tunes the model with these bottlenecks; here nothing is trained.",
            "With `factor`, a budget that is given all the same binds the last stop and is the least that earlier ones leave.",
        ),
    )

    layers: tuple[float, ...] = (0.25, 0.5, 0.75)
    factor: float = 0.0
    grid: bool = False

    def __post_init__(self) -> None:
        check_spots("layers", self.layers)
        if self.factor and not 1 < self.factor < float("inf"):
            raise ValueError(f"factor={self.factor} divides nothing; a number above 1, or 0 for the budget's")

    @property
    def settled(self) -> bool:
        return self.factor > 0

    def stops(self, depth: int) -> Sequence[int]:
        return before(self.layers, depth)

    def count(self, view: View) -> int:
        """Tokens to leave at this stop."""
        if not self.settled:
            return geometric(view)
        told = max(1, nearest(view.n / self.factor))
        if view.k == view.n:  # no budget: with one, more than that are left until the last stop
            return told
        return view.k if view.left == 0 else min(max(told, view.k + 1), view.n)

    def __call__(self, view: View) -> Reduction:
        m = self.count(view)
        return Reduction.drop(self.spread(view, m) if self.grid else evenly(view.n, m, view.x.device), view.n)

    def spread(self, view: View, m: int) -> Tensor:
        """(m,) tokens spaced evenly over rows and columns, ascending."""
        cells = Pool()(replace(view, k=m)).anchor
        free = torch.ones(view.n, dtype=torch.bool, device=cells.device).index_fill_(0, cells, False).nonzero()[:, 0]
        return torch.cat([cells, free[evenly(len(free), m - len(cells), cells.device)]]).sort().values
