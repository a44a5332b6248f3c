"""Thinning by similarity, a few at a time (VisPruner, arXiv:2412.01818)."""

from __future__ import annotations

import torch
from torch import Tensor

from .similarity import cosines

NEAR = 12  # neighbours looked at first; any number gives the same answer


def thin(x: Tensor, k: int, step: int = 8) -> Tensor:
    """(k,) of the rows (r, d) after dropping, ``step`` at a time, rows at even places that resemble one at an odd place.

    After a round the survivors of the even places come first, most similar first, then the odd places; the next round
    splits that list. The nearest odd row is looked up among the NEAR most similar ones, which holds it nearly always;
    where it does not, all odd rows are looked at. The lists are drawn up anew whenever half of the rows are gone.
    """
    row = left = torch.arange(len(x), device=x.device)
    if k in (0, len(x)):
        return row[:k]
    likeness = cosines(x).fill_diagonal_(-torch.inf)
    near = None
    while len(left) > k:
        if near is None or 2 * len(left) <= len(likeness):
            if near is not None:
                likeness = likeness.index_select(0, left).index_select(1, left)
                row, left = row[left], torch.arange(len(left), device=x.device)
            value, near = likeness.topk(min(NEAR, len(left)), dim=1, sorted=False)  # (r, NEAR)
        a, b = left[::2], left[1::2]
        off = torch.full_like(value[:, 0], -torch.inf).index_fill_(0, b, 0)  # (r,) 0 at odd places
        best = off.take(near.index_select(0, a)).add_(value.index_select(0, a)).amax(1)
        missed = best.isneginf().nonzero()[:, 0]
        if len(missed):
            best[missed] = likeness.index_select(0, a[missed]).index_select(1, b).amax(1)
        gone = min(step, len(left) - k, len(a))
        left = torch.cat([a[best.sort(descending=True, stable=True).indices[gone:]], b])
    return row[left]
