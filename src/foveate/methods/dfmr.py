"""LLaVA-Zip, DFMR (arXiv:2412.08771): a picture with little in it is pooled harder.

How much there is in a picture is the mean, over windows of s x s tokens, of the standard deviation inside a window. The
largest s whose windows are flatter than a threshold is the factor by which the picture is pooled.

What is odd: the input decides the count, so a budget can only be a cap: where the factor leaves too many tokens, the next
one is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ..method import Card, Method
from ..parts.grid import windows
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DFMR(Method):
    """Average windows of s x s tokens; the picture decides s.

    Attributes:
        threshold: windows are flat if their mean standard deviation, over the features' root mean square, is below this;
            0 never pools unless the budget asks for it.
        largest: the largest s that flatness can choose.
    """

    card = Card(
        name="dfmr",
        title="LLaVA-Zip: Adaptive Visual Token Compression with Intrinsic Image Information",
        paper="arXiv:2412.08771",
        features="before",
        count="grid",
        mechanism="transformation",
        differences=(
            "The paper trains the model with it; here nothing is trained.",
            "Re-interpretation: the rule from deviation to factor. The largest factor whose windows are flat is taken; a "
            "flatter picture never gets a smaller one.",
            "Re-interpretation: deviations are averaged over channels, and divided by the features' root mean square, so that "
            "one threshold serves several models. Its value is not the paper's, which is not known.",
            "Never more tokens than the budget: a factor that leaves more gives way to the next larger one.",
            "The tiles of a picture share one factor.",
            "Windows at the border average the tokens they have.",
        ),
    )

    threshold: float = 0.5
    largest: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold} is not a number, 0 or more")
        if self.largest < 1:
            raise ValueError(f"largest={self.largest} is not a factor, 1 or more")

    def deviation(self, view: View, factor: int) -> float:
        """Mean standard deviation inside windows of ``factor`` tokens a side, over the features' root mean square."""
        x = view.x.float()
        scale = x.square().mean().sqrt()
        home, anchor = windows(view, factor)
        mean = Reduction.groups(home, anchor)
        spread = mean.apply((x - mean.apply(x)[home]).square()).sqrt().mean()
        if not bool(spread.isfinite()):
            raise MethodError("features hold NaN or infinity", hint="look for overflow (fp16 outside autocast?)")
        return (spread / torch.where(scale > 0, scale, 1)).item()

    def factor(self, view: View) -> int:
        """Tokens per side of a window that become one, 1 or more."""
        chosen = next((s for s in range(self.largest, 1, -1) if self.deviation(view, s) < self.threshold), 1)
        most = int(torch.maximum(view.row.max(), view.col.max())) + 1
        while chosen < most and len(windows(view, chosen)[1]) > view.k:
            chosen += 1
        return chosen

    def __call__(self, view: View) -> Reduction:
        home, anchor = windows(view, self.factor(view))
        pooled = Reduction.groups(home, anchor, view.size)
        if pooled.m <= view.k:
            return pooled.sorted()
        return pooled.then(_largest(home, view)).sorted()  # more tiles than tokens asked for


def _largest(home: Tensor, view: View) -> Reduction:
    """The k windows with most tokens, the first of equals."""
    count = torch.bincount(home)
    return Reduction.drop(count.sort(descending=True, stable=True).indices[: view.k].sort().values, len(count))
