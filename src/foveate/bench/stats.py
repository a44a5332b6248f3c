"""The statistics behind every accuracy: Wilson intervals, and paired comparisons on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval (95 % by default) of a share of ``right`` out of ``n``."""
    if n == 0:
        return 0.0, 1.0
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(right: Sequence[bool]) -> dict[str, Any]:
    """n, right, accuracy and its 95 % interval of a list of outcomes."""
    n, count = len(right), sum(map(bool, right))
    low, high = wilson(count, n)
    return {"n": n, "right": count, "accuracy": count / max(n, 1), "low": low, "high": high}


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test: are gains and losses equally likely?

    Args:
        gained, lost: pairs that only the one or only the other run got right; all other pairs say nothing.
    """
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired(run: Sequence[bool], reference: Sequence[bool], draws: int = 2000) -> dict[str, Any]:
    """How much better one run is than another on the same samples.

    Returns:
        The difference in accuracy, its 95 % bootstrap interval over samples (fixed seed), pairs gained and lost, the
        exact McNemar p-value, and the share of samples on which both are right or both wrong.
    """
    one, other = np.asarray(run, dtype=np.int8), np.asarray(reference, dtype=np.int8)
    if len(one) != len(other):
        raise ValueError(f"paired results need the same samples, got {len(one)} and {len(other)}")
    change = one - other
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    n = max(len(change), 1)
    # A resampled sum depends on three counts only, so that draws need no resampled lists.
    counts = np.random.default_rng(0).multinomial(len(change), [gained / n, lost / n, 1 - (gained + lost) / n], draws)
    means = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": (gained - lost) / n,
        "low": float(low),
        "high": float(high),
        "gained": gained,
        "lost": lost,
        "p": mcnemar(gained, lost),
        "same": 1 - (gained + lost) / n,
    }
