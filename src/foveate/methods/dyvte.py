"""DyVTE, dynamic visual-token exit (arXiv:2411.19628): the picture leaves when the text has stopped taking from it.

A model first gathers what the picture says, then thinks on, in states of text, and there is a layer from which the picture
is not needed. It differs from sample to sample, so it is found while the sample runs: after every layer, the share of its
attention that the last prompt token gives to the picture is added up. After some layers in a row with little, all visual
tokens leave.

What is odd: a layer that does not look is no proof that no later one will; that is what the number in a row is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.score import known
from ..tokens import Reduction, View

CALM = "calm"


@dataclass(frozen=True)
class DyVTE(LayerMethod):
    """All visual tokens leave once the last prompt token has given them little attention in several layers in a row.

    It needs no budget, and any budget but keep=1.0, which turns it off, changes nothing.

    Attributes:
        tau: share of attention from 0 (never leave) to 1 below which a layer is calm; larger leaves earlier.
        patience: calm layers in a row that it takes, 1 or more.
    """

    card = Card(
        name="dyvte",
        title="Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings",
        paper="arXiv:2411.19628",
        code="https://github.com/DoubtedSteam/DyVTE",
        licence="",
        stages=("layers",),
        needs=("last_row",),
        guidance="question",
        count="content",
        positions="original",
        mechanism="attention",
        differences=(
            "Re-interpretation: the exit is found without training, by attention of the last prompt token. In the paper a "
            "small network, which is trained for each model, reads the mean and the last of the text's states.",
            "Re-interpretation: the threshold and the number of layers in a row are ours.",
            "Every picture leaves by itself; in the paper all leave at once.",
        ),
    )

    tau: float = 0.05
    patience: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau} is not a share in [0, 1]")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} is not a number of layers, 1 or more")

    @property
    def settled(self) -> bool:
        return True

    def stops(self, depth: int) -> Sequence[int]:
        return range(1, depth) if depth > 1 else (0,)

    def score(self, view: View) -> Tensor:
        """(n,) attention of the last prompt token, mean over heads; their sum is the picture's share."""
        return known(view.need("last_row").float().mean(0))

    def carry(self, view: View) -> Mapping[str, Tensor]:
        """How many layers in a row have been calm, the same number for every token."""
        row = view.marks.get(CALM, torch.zeros(view.n, dtype=torch.long, device=view.x.device))
        return {CALM: torch.where(self.score(view).sum() < self.tau, row + 1, 0)}

    def __call__(self, view: View) -> Reduction | None:
        row = view.marks[CALM] if CALM in view.marks else self.carry(view)[CALM]
        return Reduction.nothing(view.n, view.x.device) if bool(row[0] >= self.patience) else None
