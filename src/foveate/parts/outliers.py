"""Which of many numbers stand out."""

from __future__ import annotations

import torch
from torch import Tensor


def above_fence(score: Tensor, reach: float = 1.5) -> Tensor:
    """(n,) True where a score (n,) lies above the third quartile by more than ``reach`` times the quartiles' distance."""
    quarters = torch.tensor([0.25, 0.75], dtype=score.dtype, device=score.device)
    low, high = torch.quantile(score, quarters)
    return score > high + reach * (high - low)


def local_outliers(score: Tensor, neighbours: int = 20) -> Tensor:
    """Local outlier factor (Breunig et al., 2000) of numbers: how much more thinly sown their place is than their neighbours'.

    Sorted numbers have their nearest neighbours beside them, so that this takes n (2 k + 1) differences. Distances are
    taken as shares of the whole range; 1e-10 keeps copies from being infinitely dense.

    Args:
        score: (n,) finite.
        neighbours: k, at most n - 1.

    Returns:
        (n,) about 1 for a number among its like, larger for an outlier; all 1 if the numbers are equal.
    """
    n, k = len(score), min(neighbours, len(score) - 1)
    span = score.max() - score.min()
    if k < 1 or not bool(span > 0):
        return torch.ones_like(score)
    value, order = score.sort(stable=True)
    beside = torch.arange(-k, k + 1, device=score.device)
    window = torch.arange(n, device=score.device)[:, None] + beside[beside != 0]  # (n, 2 k)
    inside = (window >= 0) & (window < n)
    window = window.clamp(0, n - 1)
    far = ((value[window] - value[:, None]).abs() / span).masked_fill(~inside, torch.inf)
    near, choice = far.sort(dim=1, stable=True)
    near, friend = near[:, :k], window.gather(1, choice[:, :k])  # (n, k)
    reach = torch.maximum(near, near[:, -1][friend]).mean(1)  # of a friend: no less than its own k-th distance
    density = 1 / (reach + 1e-10)
    factor = density[friend].mean(1) / density
    return torch.empty_like(score).index_copy(0, order, factor)
