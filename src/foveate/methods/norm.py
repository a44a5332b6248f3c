"""Feature norm: the cheapest score there is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, ScoreMethod
from ..tokens import View


@dataclass(frozen=True)
class Norm(ScoreMethod):
    """Keep the tokens with the largest Euclidean norm.

    Attributes:
        largest: False keeps the smallest instead.
    """

    card = Card(
        name="norm",
        title="Largest feature norm (baseline)",
        mechanism="similarity",
    )

    largest: bool = True

    def score(self, view: View) -> Tensor:
        norm = view.x.float().norm(dim=-1)  # (n,)
        return norm if self.largest else -norm
