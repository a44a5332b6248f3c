"""Evenly spaced tokens: what uniform sampling keeps. Blind to the picture, and often hard to beat on broad questions."""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Card, Method
from ..parts.select import evenly
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Stride(Method):
    """Keep the middle token of each of k equal stretches of the raster order, over all tiles of the image."""

    card = Card(
        name="stride",
        title="Evenly spaced tokens in raster order (baseline)",
    )

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(evenly(view.n, view.k, view.x.device), view.n)
