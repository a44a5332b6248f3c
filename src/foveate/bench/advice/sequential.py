"""Bounds on a mean that may be looked at after every sample, as often as one likes.

An interval for a fixed number of samples is wrong more often than it says if one looks again and again and stops when it
suits. These bounds are confidence sequences: each holds at all numbers of samples together. They come from betting
(Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86, 2024, arXiv:2010.09686,
section 4): whoever bets a part f of a capital of 1 on every sample x in [0, 1], at odds that are fair if its mean is m,
holds the product of 1 - f + f x / m. If the mean is no larger than m, that capital is a nonnegative supermartingale, and by
Ville's inequality it ever reaches 1 / alpha with a probability of at most alpha. So all m at which it did are ruled out.

The part f is not guessed: the capital is dealt out over many of them beforehand, spread as the Beta(1/2, 1/2) of Cover's
universal portfolio. So it depends on how often each value came, and not on the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_PARTS = 256
_BETS = np.sin(np.pi * (2 * np.arange(_PARTS) + 1) / (4 * _PARTS)) ** 2  # (parts,) in (0, 1)
_STEPS = 40  # of a bisection: finer than any count of samples can tell
MOST = 10_000_000  # samples that anybody could have


def log_capital(counts: Sequence[float], values: Sequence[float], mean: float) -> float:
    """Logarithm of the capital of a bet that values in [0, 1] have a larger mean than ``mean``.

    Args:
        counts: how often each value came.
        values: in [0, 1].
        mean: in (0, 1).
    """
    shares = 1 - _BETS + np.outer(np.asarray(values) / mean, _BETS)  # (values, parts)
    logs = np.asarray(counts, dtype=float) @ np.log(shares)
    top = logs.max()
    return float(top + math.log(np.exp(logs - top).mean()))


def bounds(counts: Sequence[float], values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Lower and upper bound on the mean; each fails at any number of samples with a probability of at most ``alpha``.

    Args:
        counts: how often each value came so far.
        values: all values that can come, from the least to the largest.
        alpha: of each bound by itself; divided by the number of means that are watched, it is that of all together.
    """
    least, most = values[0], values[-1]
    up = [(value - least) / (most - least) for value in values]
    low, high = _lower(counts, up, alpha), _lower(counts, [1 - x for x in up], alpha)
    return least + (most - least) * low, most - (most - least) * high


def _lower(counts: Sequence[float], values: Sequence[float], alpha: float) -> float:
    """The largest mean that is ruled out as too small; the capital falls as the mean grows."""
    enough, low, high = math.log(1 / alpha), 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if log_capital(counts, values, middle) >= enough else (low, middle)
    return low


def needed(counts: Sequence[float], values: Sequence[float], limit: float, alpha: float) -> int | None:
    """About how many samples it takes until a bound passes ``limit``, if values go on coming as they did.

    Returns:
        Their number, those that came included; None if it is more than anybody has, or nothing came yet.
    """
    n = sum(counts)
    mean = sum(c * v for c, v in zip(counts, values, strict=True)) / max(n, 1)
    if not n or mean == limit:
        return None
    least, most = values[0], values[-1]
    up = [(value - least) / (most - least) for value in values]
    place = (limit - least) / (most - least)
    if mean < limit:
        up, place = [1 - x for x in up], 1 - place
    if not 0 < place < 1:
        return None

    def decided(total: float) -> bool:
        return log_capital([c * total / n for c in counts], up, place) >= math.log(1 / alpha)

    low, high = 0.0, float(n)
    while not decided(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > max(1.0, 0.01 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return math.ceil(high)
