"""Random tokens: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..method import Card, Method
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Random(Method):
    """Keep a uniformly random subset, in its order.

    Attributes:
        seed: the draw depends on (seed, image's place in its prompt, number of tokens) and on nothing else, so that a
            sample keeps the same tokens whatever batch it is in.
    """

    card = Card(
        name="random",
        title="Random subset (baseline)",
        mechanism="transformation",
    )

    seed: int = 0

    def __call__(self, view: View) -> Reduction:
        mixed = (self.seed * 1_000_003 + view.ordinal) * 1_000_003 + view.n
        draw = torch.randperm(view.n, generator=torch.Generator().manual_seed(mixed % (1 << 63)))
        return Reduction.drop(draw[: view.k].sort().values.to(view.x.device), view.n)
