"""Choosing by a few pivots: the strongest rows, and what resembles them least (DART, arXiv:2502.11494)."""

from __future__ import annotations

import torch
from torch import Tensor

from .select import top


def strongest(x: Tensor, k: int) -> Tensor:
    """(min(k, n),) rows of (n, d) with the largest L1 norm, strongest first; ties go to the lowest index.

    Raises:
        MethodError: if a norm is NaN.
    """
    norm = x.float().abs().sum(1)
    best = top(norm, k)
    return best[norm[best].sort(descending=True, stable=True).indices]


def unlike(likeness: Tensor, kept: Tensor, k: int) -> Tensor:
    """Tokens that resemble pivots least, pivot by pivot, each taking an equal share of those not yet taken.

    Args:
        likeness: (p, n) cosine of every pivot with every token, pivots in the order of their turns.
        kept: (m,) tokens that stay in any case.
        k: tokens to keep in all, m <= k <= n.

    Returns:
        (k,) distinct indices: ``kept``, then pivot by pivot, least similar first.
    """
    share = -((len(kept) - k) // len(likeness))  # rounded up
    for row in likeness:
        few = min(share, k - len(kept))
        free = row.index_fill(0, kept, torch.inf)
        kept = torch.cat([kept, free.sort(stable=True).indices[:few]])
    return kept
