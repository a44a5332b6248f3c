"""MustDrop (arXiv:2411.10803), its first stage: windows of tokens that resemble one another become one, early in the tower.

After the tower's first block, every window of 3 x 3 tokens is rated by the mean cosine of its pairs, and the most uniform
windows are replaced by their means. After the tower, of what is left, the share that the CLS token attends to most are marked
as key tokens: later stages of the method may not drop them.

What is odd: key tokens are protected from what comes later, not from this merging: they are found after it, and a merged
token can be one. And a window is merged whole or not at all, so that counts come in steps of eight. To meet a budget exactly
the last window is merged in part; and where all windows are merged and more must go, windows of windows follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ..method import Card, TowerMethod
from ..parts.grid import windows
from ..parts.select import ranked, top
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class MustDropMerge(TowerMethod):
    """Merge uniform windows after the tower's first block, the most uniform first, down to the budget; mark key tokens.

    Key tokens are True in ``view.marks["key"]`` of later steps, and in ``marks["key"]`` of the image's report.

    Attributes:
        window: tokens per side of a window, 2 or more.
        key: share of the tokens left, rounded up, that are marked as key tokens, from 0 (no marks) to 1.
    """

    card = Card(
        name="mustdrop_merge",
        title="Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
        paper="arXiv:2411.10803",
        code="https://github.com/liuting20/MustDrop",
        stages=("encoder",),
        features="before",
        mechanism="similarity",
        differences=(
            "The first of three stages. The filter inside the language model and the cut of the cache, which spare key "
            "tokens, are not part of it.",
            "Key tokens are those of the whole picture, also where it comes in tiles, by attention at the layer whose "
            "features the model uses; the authors take the tower's last layer. Towers without a CLS token: by the attention "
            "that a token receives.",
            "The budget decides how many windows are merged; in the paper all whose mean cosine is at least 0.8, the fewest of "
            "a batch. With a budget of as many tokens as that leaves, the result is the same.",
            "The last window is merged in part, its most typical tokens first, so that the budget is met exactly.",
            "Re-interpretation: where merging all windows is not enough, windows of windows are merged in the same way.",
            "Tokens stay in the picture's order, a merged one in the middle of its window; the authors' code puts merged ones in "
            "front. Where the side does not divide, windows at the border are smaller.",
        ),
    )

    window: int = 3
    key: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.key <= 1:
            raise ValueError(f"key={self.key} is not a share in [0, 1]")
        if self.window < 2:
            raise ValueError(f"window={self.window} is not a number of tokens per side, 2 or more")

    def stops(self, depth: int) -> Sequence[int]:
        return (min(1, depth - 1),)

    @property
    def marked_by(self) -> tuple[str, ...] | None:
        return ("attention",) if self.key else None

    def mark(self, view: View) -> Mapping[str, Tensor]:
        """Key tokens (n,): True for the ceil(key n) tokens with the highest attention, mean over heads; ties as in `top`."""
        attention = view.need("attention").float().mean(0)  # (h, n) -> (n,)
        chosen = top(attention, ceil(self.key * view.n - 1e-9))  # less than rounding can add: 7 % of 100 are 7
        return {"key": torch.zeros_like(attention, dtype=torch.bool).index_fill_(0, chosen, True)}

    def __call__(self, view: View) -> Reduction:
        done, side = Reduction.identity(view.n, view.x.device), self.window
        while done.m > view.k:
            home = windows(view, side)[0] if side <= self.window * _across(view) else torch.zeros_like(view.row)
            size = done.sizes(view.size)
            done = done.then(merged(done.apply(view.x), home[done.anchor], done.m - view.k, size)).sorted()
            side *= self.window
        return done


def merged(x: Tensor, home: Tensor, gone: int, size: Tensor) -> Reduction:
    """Windows replaced by their means, the most uniform first, until ``gone`` rows fewer are left (or all are merged).

    x: (n, d); home: (n,) window of each row; size: (n,) weights of the means.
    """
    rows, count = unit(x)[0], torch.bincount(home)
    total = torch.zeros(len(count), x.shape[1], dtype=rows.dtype, device=x.device).index_add_(0, home, rows)
    pairs = (count * (count - 1)).clamp(min=1)
    uniform = (total.square().sum(1) - torch.zeros_like(total[:, 0]).index_add_(0, home, rows.square().sum(1))) / pairs
    order = ranked(uniform.masked_fill(count < 2, -torch.inf))
    before = (count[order] - 1).cumsum(0) - (count[order] - 1)  # rows that the windows ahead have cost
    cost = torch.empty_like(count)
    cost[order] = (gone - before).clamp(min=0).minimum(count[order] - 1)
    # In every window the first cost + 1 of its rows are merged, by how much they are like the others.
    typical = (rows * total[home]).sum(1)
    by = ranked(typical)
    by = by[home[by].argsort(stable=True)]
    start = count.cumsum(0) - count
    nth = torch.empty_like(home)
    nth[by] = torch.arange(len(by), device=by.device) - start[home[by]]
    joins = (nth <= cost[home]) & (cost[home] > 0)
    # Slots: each row that stays alone, and one for each merged window, at the middle of those that join.
    inside = joins.nonzero()[:, 0]
    inside = inside[home[inside].argsort(stable=True)]
    fed = torch.bincount(home[inside], minlength=len(count))
    there = fed > 0
    middle = inside[(fed.cumsum(0) - fed + fed // 2)[there]]
    anchor = torch.cat([(~joins).nonzero()[:, 0], middle])
    assign = torch.empty_like(home)
    assign[anchor] = torch.arange(len(anchor), device=x.device)
    window = torch.empty_like(count)
    window[there] = assign[middle]
    return Reduction.groups(torch.where(joins, window[home], assign), anchor, size)


def _across(view: View) -> int:
    return int(torch.maximum(view.row.max(), view.col.max())) + 1
