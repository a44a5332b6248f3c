"""LVLM_CSP (arXiv:2504.10854): few visual tokens first, all of them in between, few at last.

*Clustering*: in the first layers only some representatives run, evenly spaced, enough for a coarse idea. *Scattering*: then
all tokens run, and what the coarse pass said reaches each of them. *Pruning*: later those that the segmentation token, or
here the last prompt token, attends to most go on alone.

What is odd: most tokens enter the middle layers as they left the connector, beside representatives that are layers ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..parts.select import top
from ..routes import Route
from ..tokens import Reduction, View
from .adsc import ADSC

SPACED = ("uniform", "grid")


@dataclass(frozen=True)
class LVLMCSP(LayerMethod):
    """As many representatives run in the first layers as best tokens in the last, and all tokens in between.

    ``keep`` is the mean over the layers. Layers may be shares of the depth below 1.0.

    Attributes:
        scatter: the first layer that runs on all tokens.
        prune: the first layer that runs on the best.
        spaced: how representatives are chosen: "uniform", every so-manieth in raster order, or "grid", the middles of equal
            cells over rows and columns.
    """

    card = Card(
        name="lvlm_csp",
        title="LVLM_CSP: Accelerating Large Vision Language Models via Clustering, Scattering, and Pruning for Reasoning "
        "Segmentation",
        paper="arXiv:2504.10854",
        stages=("layers",),
        needs=("last_row",),
        guidance="question",
        budget="mean",
        positions="original",
        mechanism="attention",
        differences=(
            "Re-interpretation: layers 10 and 19 of 32, and as many representatives as tokens that are left, come to the "
            "saving that is reported (65 % with a tenth of the tokens); the paper's values were not found.",
            "The mean cannot be less than what all tokens in the middle layers (9/32 by default) and one in the others come to.",
            "Re-interpretation: a token that waited enters the middle layers with the state in which it entered the first.",
            "The last prompt token ranks. In the paper the segmentation token does, which is generated, or part of the prompt "
            "where the answer is given.",
            "Two of the four ways to choose representatives: evenly, as in the paper, and over rows and columns, which is ours. "
            "The CLS token's choice is that of `fastervlm`; the one by a segmenter needs another model.",
            "Representatives are at a distance of n // m, as in the paper: the last n % m tokens are never chosen, and above "
            "half of the tokens they are the first m.",
            "Re-interpretation: tokens keep their positions in every phase.",
        ),
    )

    scatter: float = 0.3125
    prune: float = 0.59375
    spaced: str = "uniform"

    def __post_init__(self) -> None:
        check_spots("scatter", self.scatter)
        check_spots("prune", self.prune)
        if isinstance(self.scatter, int) == isinstance(self.prune, int) and self.scatter >= self.prune:
            raise ValueError(f"prune={self.prune} is not after scatter={self.scatter}")
        if self.spaced not in SPACED:
            raise ValueError(f"spaced={self.spaced!r} is not one of {', '.join(SPACED)}")

    def window(self, depth: int) -> tuple[int, int]:
        """The layers that run on all tokens: the first, and the first after them."""
        scatter = before((self.scatter,), depth, 0)[0]
        return scatter, max(before((self.prune,), depth)[0], scatter + 1)

    def stops(self, depth: int) -> Sequence[int]:
        scatter, prune = self.window(depth)
        return sorted({0, scatter, *([prune] if prune < depth else [])})

    def looks(self, layer: int, depth: int) -> bool:
        return layer == self.window(depth)[1]

    def count(self, n: int, k: int, depth: int) -> int:
        """Tokens that run before and after the middle layers. n: those that entered; k: the mean that is asked."""
        scatter, prune = self.window(depth)
        few = depth - (prune - scatter)
        return min(n, max(1, nearest((k * depth - (prune - scatter) * n) / few))) if few else n

    def representatives(self, view: View, m: int) -> Tensor:
        """(m,) tokens for the first layers, ascending."""
        if self.spaced == "grid":
            return ADSC(grid=True).spread(view, m)
        return torch.arange(m, device=view.x.device) * (view.n // m)

    def score(self, view: View) -> Tensor:
        """(n,) attention of the last prompt token."""
        return view.need("last_row").float().mean(0)

    def __call__(self, view: View) -> Reduction | Route | None:
        n, (scatter, _) = view.n, self.window(max(1, view.depth))
        m = view.k if view.layer < 0 else self.count(view.entered or n, view.k, view.depth)
        if view.layer == scatter:
            return Route(n, torch.arange(n, device=view.x.device)) if scatter else None
        if view.layer == 0:
            return Route(n, self.representatives(view, m))
        return Reduction.drop(top(self.score(view), m), n)
