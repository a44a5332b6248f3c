"""Joining tokens that are alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Reduction
from .select import top
from .similarity import unit


def nearest(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar target of every row, by cosine; ties go to the lowest index.

    Args:
        rows: (n, d) features.
        targets: (m,) indices of those rows that others may be given to.

    Returns:
        (n,) place in ``targets``, and (n,) the cosine.
    """
    direction, _ = unit(rows)
    best = (direction @ direction[targets].mT).max(dim=1)
    return best.indices, best.values


def bipartite(metric: Tensor, r: int, size: Tensor | None = None, protected: int = 0) -> Reduction:
    """One round of bipartite soft matching: the r most similar pairs become one token each (ToMe, section 3).

    Tokens at even places look for the most similar token at an odd place; the r best matches are merged into the odd
    one. Several may end in the same.

    Args:
        metric: (n, d) what similarity is measured on.
        r: tokens to merge away; at most half of the n - protected.
        size: (n,) weights of the mean; equal when None.
        protected: leading tokens, such as a class token, that are neither merged away nor merged into.

    Returns:
        Reduction to n - r slots in the order of their anchors, which are the tokens that were merged into.
    """
    n = len(metric)
    direction, _ = unit(metric)
    a, b = direction[::2], direction[1::2]  # (ceil(n/2), d), (floor(n/2), d)
    off_a, off_b = (protected + 1) // 2, protected // 2
    r = min(r, (n - protected) // 2, len(a) - off_a)
    anchor = torch.arange(n, device=metric.device)
    if r <= 0:
        return Reduction.drop(anchor, n)
    best = (a[off_a:] @ b[off_b:].mT).max(dim=1)
    gone = top(best.values, r)  # (r,)
    goal = 2 * (best.indices[gone] + off_b) + 1
    gone = 2 * (gone + off_a)
    stays = torch.ones(n, dtype=torch.bool, device=metric.device).index_fill_(0, gone, False)
    slot = stays.cumsum(0) - 1  # (n,) of the tokens that stay
    assign = slot.index_copy(0, gone, slot[goal])
    # n - r is known: sorting the flags avoids asking the device how many there are.
    anchor = stays.long().argsort(descending=True, stable=True)[: n - r]
    return Reduction.groups(assign, anchor, size)
