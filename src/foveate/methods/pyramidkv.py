"""PyramidKV (arXiv:2406.02069): deep layers look at few entries, so the budget funnels.

Scores are SnapKV's. What differs is how many entries a layer keeps: a straight line from many at the first layer to few at
the last, with the same number on average.

What is odd: the line is fixed beforehand; whether a layer's attention is spread or not is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..entries import Entries, Eviction
from ..method import CacheMethod
from .snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(CacheMethod):
    """SnapKV with budgets that fall from the first layer to the last.

    Attributes:
        observe, kernel, pooling: see :class:`~foveate.methods.snapkv.SnapKV`.
        beta: the last layer keeps one beta-th of the average, besides the window.
    """

    card = replace(
        SnapKV.card,
        name="pyramidkv",
        title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        paper="arXiv:2406.02069",
        code="https://github.com/Zefan-Cai/KVCache-Factory",
        licence="MIT",
        differences=(
            "Layers' numbers are rounded so that they add up to the budget; with the authors' whole-number steps the last "
            "layers keep a little more.",
            "The window counts against the budget of every layer, as in the authors' formula.",
            *SnapKV.card.differences,
        ),
    )

    observe: int = 32
    kernel: int = 5
    pooling: str = "mean"
    beta: int = 20

    def __post_init__(self) -> None:
        self.scored  # noqa: B018, which checks its options
        if self.beta < 1:
            raise ValueError(f"beta={self.beta} is below 1")

    @property
    def scored(self) -> SnapKV:
        """The method that scores."""
        return SnapKV(self.observe, self.kernel, self.pooling)

    @property
    def window(self) -> int:
        return self.observe

    def score(self, entries: Entries) -> Tensor:
        return self.scored.score(entries)

    def allot(self, k: int, n: int, measures: Sequence[float]) -> Sequence[int]:
        layers, window = len(measures), min(self.observe, k)
        middle = k - window  # on average, besides the window
        if layers == 1 or k >= n:
            return [k] * layers
        low = middle // self.beta
        high = min(2 * middle - low, n - window)
        low = 2 * middle - high
        line = [high - (high - low) * i / (layers - 1) for i in range(layers)]
        given, spent, due = [], 0, 0.0
        for each in line:  # rounding errors are carried on, so that the sum is exact
            due += each
            given.append(int(due + 0.5 + 1e-9) - spent)
            spent += given[-1]
        return [window + each for each in given]

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        return self.scored(entries, score)
