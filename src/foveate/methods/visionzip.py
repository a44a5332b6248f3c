"""VisionZip (arXiv:2412.04467): few tokens hold most of the picture; the rest is folded into a handful of others.

Dominant tokens are those the tower's CLS token attends to most (attention received, where there is no CLS). Of the rest,
evenly spaced ones become contextual tokens: each takes in the tokens whose keys resemble its own most.

What is odd: a contextual token becomes its own features *plus* the mean of what it takes in, not the mean of all, so
its scale about doubles. The reduction happens before the connector, in the tower's feature space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, Method
from ..parts import merge
from ..parts.select import top
from ..tokens import Reduction, View


@dataclass(frozen=True)
class VisionZip(Method):
    """Keep dominant tokens, merge the others into contextual ones.

    Attributes:
        contextual: share of the budget that goes to contextual tokens, in [0, 1). The authors' 10 of 64 by default.
    """

    card = Card(
        name="visionzip",
        title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        paper="arXiv:2412.04467",
        code="https://github.com/dvlab-research/VisionZip",
        licence="Apache-2.0",
        features="before",
        needs=("attention", "keys"),
        mechanism="attention",
        differences=(
            "The CLS token is not passed on. The authors send it through the connector as one of the dominant tokens, "
            "although LLaVA was trained without it.",
            "The budget is one number, shared between dominant and contextual tokens; the authors set both by hand "
            "(54 and 10, 191 and 30).",
            "Contextual tokens stand at the place of the token they grew from; the authors append them after the "
            "dominant ones.",
            "Where the connector does not map token by token, the reduction is applied to features after it.",
            "Towers without a CLS token: dominant tokens are those that receive most attention.",
        ),
    )

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        if not 0 <= self.contextual < 1:
            raise ValueError(f"contextual={self.contextual} is not a share in [0, 1)")

    def __call__(self, view: View) -> Reduction:
        few = min(nearest(self.contextual * view.k), view.k - 1)
        attention = view.need("attention").float().sum(0)  # (h, n) -> (n,)
        dominant = top(attention, view.k - few)
        if not few:
            return Reduction.drop(dominant, view.n)

        token = torch.arange(view.n, device=dominant.device)
        rest = token[_without(dominant, view.n)]  # (r,) in raster order
        # Targets are evenly spaced among the rest. The spacing is rounded down, so that a tail has none.
        target = torch.arange(few, device=rest.device) * (len(rest) // few)  # places in `rest`
        other = _without(target, len(rest))  # (r,) True for those that are taken in
        # Each goes to the target with the most similar key, which adds their mean to itself.
        goal = merge.nearest(view.need("keys")[rest], target)[0][other]
        count = torch.bincount(goal, minlength=few)[goal]

        anchor = torch.cat([dominant, rest[target]])
        src = torch.cat([anchor, rest[other]])
        dst = torch.cat([token[: view.k], len(dominant) + goal])
        weight = torch.cat([torch.ones(view.k, device=src.device), 1 / count.float()])
        return Reduction(view.n, src, dst, weight, anchor).sorted()


def _without(index: Tensor, n: int) -> Tensor:
    """(n,) True but at ``index``."""
    return torch.ones(n, dtype=torch.bool, device=index.device).index_fill_(0, index, False)
