"""LOOK-M (arXiv:2406.18139): prompts attend to text more than to pictures, so text stays first, and pictures are merged.

As in H2O the attention that each entry received is added up, head by head; half of the budget goes to the latest entries. Of
the rest text comes before pictures. What leaves is not lost: it goes into the kept entry whose key is most like its own, with
its key and its value.

What is odd: values are merged by what keys resemble. Merged keys were rotated for other positions than the one they join. And
the weighted merge drops what is less alike than the average, by the mean over heads of entries that only have their place in
the heads' lists in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import nearest
from ..entries import Entries, Eviction
from ..errors import MethodError
from ..method import CacheMethod, Card
from ..parts.entries import best
from ..parts.similarity import unit
from ..tokens import Kind

SINKS = 4  # entries at the beginning that stay without a text prior
CHUNK = 1024  # entries that go whose nearest kept keys are looked for at a time


@dataclass(frozen=True)
class LOOKM(CacheMethod):
    """Keep the latest entries and those with the most attention, text first; merge the others into them.

    Attributes:
        merge: "pivot" (an entry meets the kept one half-way), "weighted" (by their cosine), "average" or "none".
        text_prior: "ranked" (text before pictures, within the budget), "all" (all text stays, if need be beyond the budget)
            or "none" (text is not favoured, but the first four entries stay).
        recent: share of the budget that goes to the latest entries.
    """

    card = Card(
        name="lookm",
        title="LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context Inference",
        paper="arXiv:2406.18139",
        code="https://github.com/SUSTechBruce/LOOK-M",
        licence="MIT",
        stages=("cache",),
        needs=("received",),
        budget="entries",
        touches="all",
        positions="original",
        mechanism="attention",
        differences=(
            "By default the best are taken after text has been put first, as the paper describes it, so that the cache has the "
            "size asked for. The authors' code keeps all text, also beyond the budget: text_prior=all, with which counts "
            "follow the input. Where the text fits, both are the same.",
            "merge=average merges every entry into its own most similar one; the authors' code mixes up which goes where.",
            "merge=weighted drops entries less alike than the average, as the authors' code does; the paper's weights are "
            "cosines, and do not add up to one.",
            "Text that leaves is merged as pictures are.",
            "Text is what stands outside all pictures, of any number and size; the authors count 576 tokens from a mark on.",
            "Query heads that share a key head add up, and keep the same entries.",
        ),
    )

    merge: str = "pivot"
    text_prior: str = "ranked"
    recent: float = 0.5

    def __post_init__(self) -> None:
        if self.merge not in ("pivot", "weighted", "average", "none"):
            raise ValueError(f"merge={self.merge!r} is none of pivot, weighted, average, none")
        if self.text_prior not in ("ranked", "all", "none"):
            raise ValueError(f"text_prior={self.text_prior!r} is none of ranked, all, none")
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent={self.recent} is no share of the budget")
        if self.text_prior == "all":
            object.__setattr__(self, "card", replace(self.card, count="content"))

    def score(self, entries: Entries) -> Tensor:
        return entries.need("received").float().sum(1)  # (h, g, n) -> (h, n)

    def keeps(self, entries: Entries, score: Tensor) -> Tensor:
        """(h, m) entries that stay."""
        n, k, recent = entries.n, entries.k, nearest(self.recent * entries.k)
        if self.text_prior == "none":
            return best(score, k, first=SINKS, recent=recent)
        text = entries.kind == int(Kind.TEXT)
        if self.text_prior == "all":
            k = max(k, recent + int(text[: n - recent].sum()))
        if bool(score.isnan().any()):
            raise MethodError("a score is NaN", hint="look for NaN in the keys (fp16 overflow?)")
        # A place in a ranking is exact below 8 million entries: every text entry is n places ahead.
        place = score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        return best((n * text - place).float(), k, recent=recent)

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        assert score is not None
        kept, n = self.keeps(entries, score), entries.n
        heads, m = kept.shape
        if self.merge == "none" or m == n:
            return Eviction(n, kept)
        goes = torch.ones(heads, n, dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
        gone = goes.nonzero()[:, 1].view(heads, n - m)
        alike, target = most_alike(entries.keys, gone, kept)
        joins = torch.ones_like(gone, dtype=torch.bool)
        if self.merge == "weighted":
            joins = (alike.mean(0) >= alike.mean()).expand_as(gone)
        join = joins.to(alike.dtype)
        fed = torch.zeros(heads, m, dtype=alike.dtype, device=alike.device).scatter_add_(1, target, join)
        share = {"pivot": 0.5, "average": 1.0}.get(self.merge, alike) * join / (1 + fed).gather(1, target)
        stays = (1 + fed / 2 if self.merge == "pivot" else torch.ones_like(fed)) / (1 + fed)
        slot = torch.empty(heads, n, dtype=torch.long, device=kept.device)
        slot.scatter_(1, kept, torch.arange(m, device=kept.device).expand(heads, -1))
        slot.scatter_(1, gone, target.masked_fill(~joins, -1))
        weight = torch.empty(heads, n, dtype=alike.dtype, device=kept.device)
        weight.scatter_(1, kept, stays).scatter_(1, gone, share)
        return Eviction(n, kept, slot, weight)


def most_alike(keys: Tensor, gone: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """For entries that go, the most similar kept key of the same head.

    Args:
        keys: (h, n, c).
        gone, kept: (h, e) and (h, m) entries.

    Returns:
        The cosine (h, e), and which of the kept ones (h, e); ties go to the first.
    """
    rows = unit(keys.flatten(0, 1))[0].view(keys.shape)

    def of(which: Tensor) -> Tensor:
        return rows.gather(1, which[..., None].expand(-1, -1, rows.shape[2]))

    targets = of(kept).mT
    found = [(of(part) @ targets).max(-1) for part in gone.split(CHUNK, dim=1)]
    return torch.cat([one.values for one in found], 1), torch.cat([one.indices for one in found], 1)
