"""SnapKV (arXiv:2404.14469): the end of the prompt already shows what the answer will look at.

Attention of the last tokens of the prompt, added up, scores every earlier entry of each head; a running mean over
neighbours keeps entries that belong together from being torn apart. The best stay, with the window that did the scoring.

What is odd: columns of the window are cut off after the softmax, so what is compared has lost a part of its mass, a part
that differs from head to head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..entries import Entries, Eviction
from ..method import CacheMethod, Card
from ..parts.entries import best


@dataclass(frozen=True)
class SnapKV(CacheMethod):
    """Keep, for each key head, the entries that the last prompt tokens attend to most.

    Attributes:
        observe: tokens at the end of the prompt that score the others, and stay.
        kernel: neighbours, odd, over which scores are pooled; 1 for none.
        pooling: "mean" or "max".
    """

    card = Card(
        name="snapkv",
        title="SnapKV: LLM Knows What You are Looking for Before Generation",
        paper="arXiv:2404.14469",
        code="https://github.com/FasterDecoding/SnapKV",
        licence="",
        stages=("cache",),
        needs=("window_rows",),
        guidance="question",
        budget="entries",
        touches="all",
        positions="original",
        mechanism="attention",
        differences=(
            "Query heads that share a key head are averaged and keep the same entries; the authors store keys and values "
            "once for each query head, so that their cache is larger by that factor.",
            "Entries stay in the order of the prompt; the authors leave them in that of their scores.",
            "A share of the prompt, too, can be the budget; the authors name a number.",
        ),
    )

    observe: int = 32
    kernel: int = 5
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.observe < 1:
            raise ValueError(f"observe={self.observe} is not a number of tokens, 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} is not an odd number")
        if self.pooling not in ("mean", "max"):
            raise ValueError(f"pooling={self.pooling!r} is neither mean nor max")

    @property
    def window(self) -> int:
        return self.observe

    def score(self, entries: Entries) -> Tensor:
        rows = entries.need("window_rows").float().mean(1).sum(1)  # (h, g, q, n) -> (h, n)
        before = rows[:, : -self.observe] if entries.n > self.observe else rows[:, :0]
        pool = nn.functional.avg_pool1d if self.pooling == "mean" else nn.functional.max_pool1d
        if before.shape[1]:
            before = pool(before[:, None], self.kernel, stride=1, padding=self.kernel // 2)[:, 0]
        return nn.functional.pad(before, (0, entries.n - before.shape[1]))

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        assert score is not None
        return Eviction(entries.n, best(score, entries.k, recent=self.observe))
