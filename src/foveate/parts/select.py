"""Choosing tokens: by score, evenly, or far apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError


def top(score: Tensor, k: int) -> Tensor:
    """Indices (min(k, n),) of the highest scores (n,), ascending by index; ties go to the lowest index.

    Raises:
        MethodError: if a score is NaN, which has no rank.
    """
    if bool(score.isnan().any()):
        raise MethodError(
            f"{int(score.isnan().sum())} of {len(score)} scores are NaN",
            hint="look for NaN in the features (fp16 overflow?) or a division by zero in the score",
        )
    return score.sort(descending=True, stable=True).indices[:k].sort().values


def evenly(n: int, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Indices (k,) of the middle token of each of k equal stretches of n tokens; distinct for k <= n."""
    return (2 * torch.arange(k, device=device) + 1) * n // (2 * k)


def spread(similarity: Tensor, k: int) -> Tensor:
    """Greedy max-min diversity: k tokens, each as unlike the ones before it as can be.

    The first is the token whose most similar other is least similar; every further one has the smallest similarity to
    the most similar token already picked. A picked token is never picked again, also when only copies of picked ones
    are left. Ties go to the lowest index. O(n k) after the similarities: one running maximum, no host-device transfer.

    Args:
        similarity: (n, n) symmetric; the diagonal is overwritten.
        k: 1 <= k <= n.

    Returns:
        (k,) distinct indices in the order they were picked.
    """
    similarity = similarity.detach()
    first = similarity.fill_diagonal_(-torch.inf).amax(1).argmin(dim=0, keepdim=True)  # (1,) argmin: first of equals
    # From here on a token is infinitely like itself: picked once, no running maximum brings it down again.
    similarity.fill_diagonal_(torch.inf)
    nearest = similarity.index_select(0, first)  # (1, n) to the picked tokens
    picked = [first]
    for _ in range(k - 1):
        one = nearest.argmin(dim=1)
        picked.append(one)
        torch.maximum(nearest, similarity.index_select(0, one), out=nearest)
    return torch.cat(picked)
