"""StreamingLLM (arXiv:2309.17453): keep the first entries, which soak up attention, and the latest; forget the middle.

A softmax has to put its mass somewhere, and models learn to put it on the first few tokens. If these leave the cache, the
model breaks; with them and a window of recent entries it can go on for ever. Nothing is scored.

What is odd: where a picture stands before a long text, a small budget forgets all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..entries import Entries, Eviction
from ..method import CacheMethod, Card
from ..parts.entries import all_heads, best


@dataclass(frozen=True)
class StreamingLLM(CacheMethod):
    """Keep the first and the latest entries.

    Attributes:
        sinks: entries at the beginning that stay.
        decoding: let the oldest entry after the sinks go at every step of decoding.
    """

    card = Card(
        name="streamingllm",
        title="Efficient Streaming Language Models with Attention Sinks",
        paper="arXiv:2309.17453",
        code="https://github.com/mit-han-lab/streaming-llm",
        licence="MIT",
        stages=("cache",),
        budget="entries",
        touches="all",
        positions="contiguous",
        mechanism="transformation",
        differences=(
            "Entries keep their positions; the authors turn cached keys anew by their place in the cache, so that positions "
            "never grow beyond its size. Within a model's context length both work.",
            "The budget counts sinks and window together.",
        ),
    )

    sinks: int = 4
    decoding: bool = True

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} is below 0")

    @property
    def evicts(self) -> bool:
        return self.decoding

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        sinks = min(self.sinks, entries.k)
        flat = torch.zeros(1, entries.n, device=entries.keys.device)
        kept = best(flat, entries.k, first=sinks, recent=entries.k - sinks)
        return Eviction(entries.n, all_heads(kept[0], len(entries.keys)))

    def oldest(self, score: Tensor | None, alive: Tensor) -> Tensor:
        place = alive.long().cumsum(1) - 1
        sinks = torch.minimum(alive.sum(1, keepdim=True) - 2, torch.tensor(self.sinks, device=alive.device)).clamp(
            min=0
        )
        first = ((place == sinks) & alive).int().argmax(1)  # (b,)
        return first[:, None]
