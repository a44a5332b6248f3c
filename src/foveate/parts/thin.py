"""Thinning by similarity, a few at a time (VisPruner, arXiv:2412.01818)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .similarity import cosines

NEAR = 16  # neighbours looked at first; any number gives the same answer
FEW = 640  # rows so few that on a CPU a look at all of them costs less than lists of neighbours; likewise


def thin(x: Tensor, k: int, step: int = 8) -> Tensor:
    """(k,) of the rows (r, d) after dropping, ``step`` at a time, rows at even places that resemble one at an odd place.

    After a round the survivors of the even places come first, most similar first, then the odd places; the next round
    splits that list. The nearest odd row is looked up among the NEAR most similar ones, which holds it nearly always;
    where it does not, all odd rows are looked at. The lists are drawn up anew whenever half of the rows are gone.
    """
    if k in (0, len(x)):
        return torch.arange(k, device=x.device)
    likeness = cosines(x).detach().fill_diagonal_(-torch.inf)
    rounds = _thin_on_cpu if likeness.is_cpu else _thin_on_device
    return rounds(likeness, k, step)


def _thin_on_device(likeness: Tensor, k: int, step: int) -> Tensor:
    """What :func:`thin` leaves of rows with these cosines (r, r), minus infinity on the diagonal."""
    row = left = torch.arange(len(likeness), device=likeness.device)
    near = None
    while len(left) > k:
        if near is None or 2 * len(left) <= len(likeness):
            if near is not None:
                likeness = likeness.index_select(0, left).index_select(1, left)
                row, left = row[left], torch.arange(len(left), device=left.device)
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


def _thin_on_cpu(likeness: Tensor, k: int, step: int) -> Tensor:
    """The same through NumPy, whose calls cost less. Where few rows are left, all are looked at in every round."""
    rows = likeness.numpy()
    row = left = np.arange(len(rows))
    near = None  # (NEAR, r) of every row the columns of its highest values
    anew = True
    while len(left) > k:
        if 2 * len(left) <= len(rows):
            there = np.sort(left)  # in their order, which memory is quicker with
            row, left, rows = row[there], there.searchsorted(left), rows.take(there, 0).take(there, 1)
            anew = True
        if anew and len(rows) > max(FEW, NEAR):
            found = torch.from_numpy(rows).topk(NEAR, dim=1, sorted=False)
            value, near = (np.ascontiguousarray(one.numpy().T) for one in found)
        elif anew:
            near, columns = None, rows.T.copy()  # maxima of columns are quicker than of rows
        anew = False
        a, b = left[::2], left[1::2]
        if near is None:
            best = columns.take(b, 0).max(0)[a]
        else:
            off = np.full_like(rows[0], -np.inf)  # (r,) 0 at odd places
            off[b] = 0
            best = (off.take(near.take(a, 1)) + value.take(a, 1)).max(0)
            missed = np.isneginf(best).nonzero()[0]
            if len(missed):
                best[missed] = (rows.take(a[missed], 0) + off).max(1)
        gone = min(step, len(left) - k, len(a))
        left = np.concatenate([a[_descending(best)[gone:]], b])
    return torch.from_numpy(row[left])


def _descending(value: np.ndarray) -> np.ndarray:
    """Indices (r,) from the highest value to the lowest; ties by ascending index. A stable sort costs more: only for ties."""
    value = -value
    order = value.argsort()
    there = value[order]
    return value.argsort(kind="stable") if (there[1:] == there[:-1]).any() else order
