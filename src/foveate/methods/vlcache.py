"""VL-Cache (arXiv:2410.23317): the words after the picture say which entries matter, and how many each layer needs.

Attention of the text after the last picture is added up, and the best entries stay, with the latest. How many a layer keeps
goes by how dense that attention is: the more entries get at least a hundredth of what the row's first gets, the more stay.

What is odd: a layer pays for looking at little, whatever that little is worth; and entries are counted dense or not by a
threshold, by the best of their row, which an attention sink can set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..budget import nearest
from ..entries import Entries, Eviction
from ..errors import MethodError
from ..method import CacheMethod, Card
from ..parts.entries import best

LEAST = 0.01  # share of its entries that a layer keeps at least
NEVER = 1e-6  # of the densest layer: a layer of no density still takes what others cannot hold


@dataclass(frozen=True)
class VLCache(CacheMethod):
    """Keep what the text after the picture attends to, more of it in layers whose attention is dense.

    Attributes:
        recent: share of a layer's budget that goes to its latest entries.
        threshold: share of a row's maximum from which on attention counts as not zero.
        head_adaptive: whether each key head keeps its own entries; otherwise all heads of a layer keep the same.
        adaptive: share of the budget that goes by density, from 0 (all layers keep as many) to 1.
    """

    card = Card(
        name="vlcache",
        title="VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language Model Inference Acceleration",
        paper="arXiv:2410.23317",
        stages=("cache",),
        needs=("text_rows",),
        guidance="question",
        budget="entries",
        touches="all",
        positions="original",
        mechanism="attention",
        differences=(
            "Layers' numbers add up to the budget: what a clipped layer cannot hold, or is given on top, is made up for by the "
            "others. In the paper shares are clipped and left so, and their sum may miss it.",
            "A layer keeps a hundredth of the prompt at least, as in the paper, or the average where that is less.",
            "Re-interpretation: the latest tenth is that of each layer's own budget, and part of it; in a port of the method "
            "it is as many entries in every layer.",
            "A prompt without text after its last picture is scored by its last token.",
            "Where a step between the layers left a layer fewer entries than its share, the rest is not passed on.",
        ),
    )

    recent: float = 0.1
    threshold: float = 0.01
    head_adaptive: bool = False
    adaptive: float = 1.0

    def __post_init__(self) -> None:
        for name in ("recent", "threshold", "adaptive"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={value} is not a share in [0, 1]")

    def score(self, entries: Entries) -> Tensor:
        received = entries.need("text_rows").float().sum((1, 2))  # (h, g, q, n) -> (h, n)
        return received if self.head_adaptive else received.sum(0).repeat(len(received), 1)

    def measure(self, entries: Entries) -> float:
        """Density: the share of the attention that a row may give, which is not zero; mean over rows' entries and heads."""
        rows = entries.need("text_rows").float()
        dense = (rows > 0) & (rows >= self.threshold * rows.amax(-1, keepdim=True))
        seen = (rows > 0).any(0).any(0)  # (q, n); the last that any head looks at is the token itself
        allowed = int((seen.shape[1] - seen.flip(1).int().argmax(1)).sum())
        return float(dense.sum()) / max(1, allowed * rows.shape[0] * rows.shape[1])

    def allot(self, k: int, n: int, measures: Sequence[float]) -> Sequence[int]:
        weight = torch.tensor(measures, dtype=torch.float64)
        if not bool(weight.isfinite().all()):
            raise MethodError("a layer's density is NaN or infinite", hint="look for NaN in the keys (fp16 overflow?)")
        if k >= n or not bool((weight > 0).any()):
            return [k] * len(measures)
        weight = weight.clamp(min=NEVER * float(weight.max()))
        least = min(k, max(1, nearest(LEAST * n)))
        low, high = 0.0, n / float(weight.min())
        for _ in range(100):  # the factor by which clipped shares add up to the budget
            middle = (low + high) / 2
            short = float((middle * weight).clamp(least, n).sum()) < k * len(measures)
            low, high = (middle, high) if short else (low, middle)
        wanted = (self.adaptive * (high * weight).clamp(least, n) + (1 - self.adaptive) * k).cumsum(0)
        ends = [0, *(nearest(each) for each in wanted.tolist())]  # rounding errors are carried on: the sum is exact
        return [end - start for start, end in pairwise(ends)]

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        assert score is not None
        return Eviction(entries.n, best(score, entries.k, recent=nearest(self.recent * entries.k)))
