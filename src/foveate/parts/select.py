"""Choosing tokens: by score, evenly, or far apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError


def ranked(score: Tensor) -> Tensor:
    """Indices (n,) from the highest score (n,) to the lowest; ties by ascending index.

    Raises:
        MethodError: if a score is NaN, which has no rank.
    """
    if bool(score.isnan().any()):
        raise MethodError(
            f"{int(score.isnan().sum())} of {len(score)} scores are NaN",
            hint="look for NaN in the features (fp16 overflow?) or a division by zero in the score",
        )
    return score.sort(descending=True, stable=True).indices


def top(score: Tensor, k: int) -> Tensor:
    """Indices (min(k, n),) of the highest scores (n,), ascending by index; ties go to the lowest index.

    Raises:
        MethodError: if a score is NaN, which has no rank.
    """
    return ranked(score)[:k].sort().values


def top_within(score: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """The highest scores of each group, ascending by index; ties go to the lowest index.

    Args:
        score: (n,) the higher the better.
        group: (n,) group of each token, 0 <= group < g.
        count: (g,) how many of each group; of a group with fewer tokens, all.

    Returns:
        Indices (sum of the counts,).

    Raises:
        MethodError: if a score is NaN.
    """
    order = ranked(score)
    order = order[group[order].argsort(stable=True)]  # by group, then score, then index
    size = torch.bincount(group, minlength=len(count))
    place = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[group[order]]
    return order[place < count.to(order.device)[group[order]]].sort().values


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
    further = _spread_on_cpu if similarity.device.type == "cpu" else _spread_on_device
    return further(similarity, first, k)


def _spread_on_device(similarity: Tensor, first: Tensor, k: int) -> Tensor:
    """The picks of :func:`spread` from the first (1,) on, without a transfer to the host."""
    nearest = similarity.index_select(0, first)  # (1, n) to the picked tokens
    picked = [first]
    for _ in range(k - 1):
        one = nearest.argmin(dim=1)
        picked.append(one)
        torch.maximum(nearest, similarity.index_select(0, one), out=nearest)
    return torch.cat(picked)


def _spread_on_cpu(similarity: Tensor, first: Tensor, k: int) -> Tensor:
    """The same picks through NumPy, whose calls cost less: on rows this short the calls are most of a step."""
    narrow = similarity.dtype in (torch.float16, torch.bfloat16)  # NumPy is slow with one and lacks the other
    rows = (similarity.float() if narrow else similarity).numpy()  # (n, n)
    picked = np.empty(k, dtype=np.int64)
    picked[0] = first.item()
    nearest = rows[picked[0]].copy()  # (n,) to the picked tokens
    for i in range(1, k):
        picked[i] = one = nearest.argmin()
        np.maximum(nearest, rows[one], out=nearest)
    return torch.from_numpy(picked)
