"""Choosing entries of the cache, all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError


def best(score: Tensor, k: int, first: int = 0, recent: int = 0) -> Tensor:
    """The k highest scores of each head, with what stays in any case; ascending, ties go to the lowest index.

    Args:
        score: (h, n) the higher the better.
        k: 1 <= k <= n.
        first, recent: entries at the beginning and at the end that stay in any case, if need be all k; the end goes first.

    Returns:
        (h, k).

    Raises:
        MethodError: if a score is NaN, which has no rank.
    """
    if bool(score.isnan().any()):
        raise MethodError("a score is NaN", hint="look for NaN in the keys (fp16 overflow?)")
    n = score.shape[1]
    recent = min(recent, k)
    first = min(first, k - recent)
    score = score.clamp(max=torch.finfo(score.dtype).max)  # a copy, below those that stay in any case
    score[:, n - recent :] = torch.inf
    # Those at the beginning come after those at the end, and before all others; -inf may be a score.
    order = score[:, first:].sort(dim=1, descending=True, stable=True).indices + first
    start = torch.arange(first, device=score.device).expand(len(score), -1)
    return torch.cat([start, order[:, : k - first]], 1).sort(dim=1).values


def all_heads(kept: Tensor, heads: int) -> Tensor:
    """(h, k) the same entries (k,) for every head."""
    return kept.expand(heads, -1).contiguous()
