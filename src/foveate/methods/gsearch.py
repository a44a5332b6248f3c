"""G-Search (arXiv:2412.00556): the fewest tokens that each layer needs, found by search on samples.

Tokens that a layer attends to little are seldom attended to by the next: from the second layer on, the ranking by attention
stays nearly the same. So every layer can go on with the best of those that the layer before ran on, by what the text gave
them there. How many, is searched once for a model: layer by layer from the first, the smallest share at which nothing is
lost on calibration samples (`foveate search`). Without a search the counts fall in a straight line.

What is odd: the schedule is the model's, whatever picture and question; only which tokens stay depends on them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..errors import MethodError
from ..method import Card, LayerMethod
from ..parts.pace import bisect
from ..parts.select import top
from ..tokens import Reduction, View

ROWS = ("text", "last")


def tokens(shares: Sequence[float], n: int) -> list[int]:
    """Tokens of each layer from its share of n: rounded up, never more than in the layer before, none where it is 0."""
    counts = [math.ceil(share * n - 1e-9) for share in shares]
    return [min(counts[: i + 1]) for i in range(len(counts))]


@dataclass(frozen=True)
class Scheduled(LayerMethod):
    """Every layer from the second on runs on a number of tokens that is known beforehand.

    Attributes:
        rows: whose attention ranks: "text", the mean over the text after the image, or "last", its last token alone.
    """

    rows: str = "text"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"rows={self.rows!r} is not one of {', '.join(ROWS)}")

    def stops(self, depth: int) -> Sequence[int]:
        return range(1, depth) if depth > 1 else (0,)

    @abstractmethod
    def lengths(self, n: int, k: int, depth: int) -> Sequence[int]:
        """Tokens that run in each layer. n: those that entered; k: their mean over the layers."""

    def score(self, view: View) -> Tensor:
        """(n,) attention in the layer before, mean over heads and rows of text."""
        seen = view.need("text_rows").float()
        return seen.mean((0, 1)) if self.rows == "text" else seen[:, -1].mean(0)

    def __call__(self, view: View) -> Reduction | None:
        if view.layer == 0:
            return None
        m = view.k if view.layer < 0 else _lengths(self, view.entered or view.n, view.k, view.depth)[view.layer]
        return Reduction.drop(top(self.score(view), m), view.n) if m < view.n else None


@lru_cache(maxsize=1024)
def _lengths(method: Scheduled, n: int, k: int, depth: int) -> Sequence[int]:
    """The lengths of a method, worked out once."""
    return method.lengths(n, k, depth)


@dataclass(frozen=True)
class GSearch(Scheduled):
    """Keep in every layer the share of the tokens that a search found, by the text's attention in the layer before.

    Without ``shares``, ``keep`` is the mean over the layers, and counts fall in a straight line.

    Attributes:
        rows: whose attention ranks: "text", the mean over the text after the image, or "last", its last token alone.
        shares: of the tokens that entered, one for each layer from the first on, never rising; the first is 1, and 0 lets the
            picture leave. With it a plan may leave out ``keep``, and a budget other than 1.0, which turns it off, changes
            nothing.
    """

    card = Card(
        name="gsearch",
        title="Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction",
        paper="arXiv:2412.00556",
        stages=("layers",),
        needs=("text_rows",),
        guidance="question",
        budget="mean",
        positions="original",
        mechanism="attention",
        differences=(
            "Re-interpretation: rows of the text after the image are averaged, over all heads; which rows the paper takes was "
            "not found. `rows=last` takes the last.",
            "Re-interpretation: shares are of the tokens that entered, and counts are rounded up.",
            "Re-interpretation: positions stay, and each layer caches what it ran on.",
            "The line that falls without a search is ours. No layer keeps fewer than one token, and the first keeps all, so "
            "that the mean cannot be less than one token and the first layer's share.",
        ),
    )

    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.shares
        if not isinstance(shares, tuple) or any(isinstance(s, bool) or not isinstance(s, (int, float)) for s in shares):
            raise ValueError(f"shares={shares!r} are not numbers")
        if shares and not (shares[0] == 1 and shares[-1] >= 0 and list(shares) == sorted(shares, reverse=True)):
            raise ValueError(f"shares={shares!r} do not fall from 1, in the first layer, to 0 at the least")

    @property
    def settled(self) -> bool:
        return bool(self.shares)

    def stops(self, depth: int) -> Sequence[int]:
        if self.shares and len(self.shares) != depth:
            raise MethodError(
                f"{len(self.shares)} shares, but the language model has {depth} layers",
                where=f"method {self.name}",
                hint="foveate search, on this model",
            )
        return super().stops(depth)

    def lengths(self, n: int, k: int, depth: int) -> Sequence[int]:
        if self.shares:
            return tokens(self.shares, n)

        def line(end: float) -> list[int]:  # where it reaches nothing, in depths
            return [n, *(max(1, m) for m in tokens([max(0.0, 1 - i / (depth * end)) for i in range(1, depth)], n))]

        return line(bisect(lambda end: sum(line(end)), k * depth, 1e-6, 2.0 * n))
