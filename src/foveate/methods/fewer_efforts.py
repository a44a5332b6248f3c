"""Fewer efforts to see (arXiv:2410.06169): keep the tokens, and do less for each of them.

A visual token needs its neighbours, not the whole picture; many heads never look at the picture; and in deep layers nobody
does. So visual queries see a square around them, heads on a list do not look at the picture, and from some layer on the
picture is gone. Each can be had alone.

What is odd: within the square a token also sees what comes after it, which the model has never seen in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..method import Card, WorkMethod
from ..parts.grid import neighbours
from ..parts.pace import before, check_spots
from ..routes import Work
from ..tokens import Reduction, View


@dataclass(frozen=True)
class FewerEfforts(WorkMethod):
    """A neighbourhood for visual queries, a list of heads that look at the picture, and a layer where it leaves.

    Attributes:
        window: side of the square of tokens that a visual token sees, odd; 0 for all, as the model has it.
        heads: for each layer from the first on, query heads that look at the picture; layers without an entry keep all.
        exit: layer from which on the picture is gone, or a share of the depth below 1.0; 0 for never.
    """

    card = Card(
        name="fewer_efforts",
        title="Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See",
        paper="arXiv:2410.06169",
        code="https://github.com/ZhangAIPI/YOPO_MLLM_Pruning",
        licence="",
        stages=("layers",),
        count="content",
        positions="original",
        mechanism="attention",
        differences=(
            "What is left out is not computed; the authors' code computes everything and sets it to zero.",
            "In the layers after the last the picture's tokens leave; the authors go on updating states that nobody reads.",
            "Using a part of the feed-forward network's channels for visual tokens needs fine-tuning, and is left out.",
            "The authors list heads by a vote over 100 samples; `foveate.lens.looking_heads` measures them on yours.",
            "Windows lie within a tile.",
        ),
    )

    window: int = 5
    heads: tuple[tuple[int, ...], ...] = ()
    exit: float = 0

    def __post_init__(self) -> None:
        check_spots("exit", self.exit)
        if self.window and (self.window < 0 or self.window % 2 == 0):
            raise ValueError(f"window={self.window} is neither odd nor 0")
        if not (isinstance(self.heads, tuple) and all(isinstance(layer, tuple) for layer in self.heads)):
            raise ValueError(f"heads={self.heads!r} is no list of heads for each layer")

    def stops(self, depth: int) -> Sequence[int]:
        return range(before((self.exit,), depth)[0] + 1 if self.exit else depth)

    def __call__(self, view: View) -> Work | Reduction:
        if self.exit and view.layer >= before((self.exit,), view.depth)[0]:
            return Reduction.nothing(view.n, view.x.device)
        looks = None
        if view.layer < len(self.heads):
            looks = torch.tensor(self.heads[view.layer], dtype=torch.long)
        return Work(sees=neighbours(view, self.window) if self.window else "all", heads=looks)
