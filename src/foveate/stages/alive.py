"""Which rows of the vision tower are left, and how to go from all rows to these and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tokens import Reduction


class Alive:
    """Which rows of the tower are left, and which of them stands for each row that is not. It never changes.

    Args:
        rows: (r,) the rows that are left, batch and sequence as one, ascending.
        home: (b * L,) for every row the place in ``rows`` of what it went into; -1 if it was dropped.
        counts: rows left in each row of the batch.
        length: L, tokens per row of the batch.
        size: (r,) how many tokens each stands for, if attention is to count them; else None.
    """

    def __init__(self, rows: Tensor, home: Tensor, counts: list[int], length: int, size: Tensor | None) -> None:
        self.rows, self.counts, self.length, self.size = rows, counts, length, size
        width, device = max(counts), rows.device
        self.shape = (len(counts), width)
        self.ragged = min(counts) < width
        self.slots, self.source = rows, home
        self.real: Tensor | None = None  # (r,) places of the rows among the slots
        if self.ragged:
            short = torch.tensor(counts, device=device)[:, None]
            self.hidden = torch.arange(width, device=device) >= short  # (b, m) slots that hold nothing
            self.real = (~self.hidden).flatten().nonzero()[:, 0]
            start = short.cumsum(0) - short
            self.slots = rows[torch.where(self.hidden, start, start + torch.arange(width, device=device)).flatten()]
            self.source = torch.where(home < 0, home, self.real[home.clamp(min=0)])
        self.gone = (home < 0)[:, None]
        self.home = home

    def take(self, x: Tensor) -> Tensor:
        """Rows that are left, (b, L, d) -> (b, m, d)."""
        return x.flatten(0, 1).index_select(0, self.slots).view(*self.shape, x.shape[-1])

    def spread(self, x: Tensor) -> Tensor:
        """(b, m, d) -> (b, L, d): every row holds what it went into, zeros if it was dropped."""
        out = x.flatten(0, 1).index_select(0, self.source.clamp(min=0)).masked_fill(self.gone, 0)
        return out.view(self.shape[0], self.length, x.shape[-1])

    def flat(self, x: Tensor) -> Tensor:
        """(b, m, ...) -> (r, ...) without the slots that hold nothing."""
        return x.flatten(0, 1) if self.real is None else x.flatten(0, 1)[self.real]

    def wide(self, x: Tensor) -> Tensor:
        """(r, d) -> (b, m, d), the reverse of :meth:`flat`."""
        if self.real is not None:
            x = x.new_zeros(self.shape[0] * self.shape[1], x.shape[1]).index_copy(0, self.real, x)
        return x.view(*self.shape, x.shape[-1])

    def back(self, x: Tensor, copies: bool) -> Tensor:
        """What was read of the rows that are left (r, ...), for all (b, L, ...): as copies, or zero where no row is left."""
        if copies:
            full = x[self.home.clamp(min=0)] * (self.home >= 0).view(-1, *[1] * (x.ndim - 1))
        else:
            full = x.new_zeros(len(self.home), *x.shape[1:]).index_copy(0, self.rows, x)
        return full.view(self.shape[0], self.length, *x.shape[1:])

    def places(self) -> Tensor:
        """(b, m) place of each slot in its row of the batch."""
        return self.slots.view(*self.shape) % self.length

    def bias(self, like: Tensor) -> Tensor | None:
        """(b, 1, 1, m) what to add to attention logits, or None: log size, and nothing but -inf where no token is."""
        if self.size is None and not self.ragged:
            return None
        if self.size is None:
            bias = like.new_zeros(self.shape)
        else:
            bias = self.wide(self.size.log()[:, None])[..., 0].to(like.dtype)
        if self.ragged:
            bias = bias.masked_fill(self.hidden, torch.finfo(like.dtype).min)
        return bias[:, None, None]


def joined(parts: Sequence[tuple[Tensor, Reduction]], n: int) -> Reduction:
    """Reductions of separate tokens as one, in the order of anchors.

    Args:
        parts: (places among the n tokens, reduction of these); together all of them.
        n: number of all tokens.
    """
    anchor = torch.cat([index[one.anchor] for index, one in parts])
    if all(one.is_drop for _, one in parts):
        return Reduction.drop(anchor.sort().values, n)
    dst, weight, start = [], [], 0
    for _, one in parts:
        dst.append(one.dst + start)
        weight.append(torch.ones(len(one.src), device=one.src.device) if one.weight is None else one.weight)
        start += one.m
    src = torch.cat([index[one.src] for index, one in parts])
    return Reduction(n, src, torch.cat(dst), torch.cat(weight), anchor).sorted()
