"""CMAI, the second half of VMTC + CMAI (arXiv:2411.15453): text looks away from what the text before it did not look at.

For every text token, the attention that the text it attends to pays to the picture is added up, weighted by how much it
attends to each. That is its focus. Image tokens with little of it are hidden from that token in the next layer.

What is odd: a token is judged by what others looked at; what it would find for itself counts as one voice among many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, WorkMethod
from ..parts.pace import before, check_spots
from ..parts.score import known
from ..routes import Work
from ..tokens import View


@dataclass(frozen=True)
class CMAI(WorkMethod):
    """Text rows do not see the image tokens that the text they attend to looks at least.

    Attributes:
        focus: share of the image's tokens that each text token goes on seeing, in (0, 1].
        start: the first layer where it is so, 1 or more, or a share of the depth below 1.0.
    """

    card = Card(
        name="cmai",
        title="Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image Redundancy",
        paper="arXiv:2411.15453",
        stages=("layers",),
        needs=("text_rows", "text_text"),
        guidance="question",
        count="content",
        positions="original",
        mechanism="attention",
        differences=(
            "Re-interpretation: focus is the product of text-to-text and text-to-image attention, heads averaged; share and "
            "first layer are not said where we could read.",
            "The other half, merging before the language model, is `vmtc`: a plan may have either or both.",
            "Tokens of the answer, which come later, see the whole picture.",
            "The paper trains with it; here it is switched on in a model that was not.",
        ),
    )

    focus: float = 0.5
    start: float = 2

    def __post_init__(self) -> None:
        check_spots("start", self.start)
        if not 0 < self.focus <= 1:
            raise ValueError(f"focus={self.focus} is no share above 0")

    def stops(self, depth: int) -> Sequence[int]:
        return range(before((self.start,), depth)[0], depth)

    def score(self, view: View) -> Tensor:
        """(q, n) focus of every text token on every image token."""
        among, image = (view.need(name).float().mean(0) for name in ("text_text", "text_rows"))  # (q, q), (q, n)
        return known(among @ image)

    def __call__(self, view: View) -> Work:
        score = self.score(view)
        k = max(1, nearest(self.focus * view.n))
        best = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return Work(hidden=torch.ones_like(score, dtype=torch.bool).scatter(1, best, False))
