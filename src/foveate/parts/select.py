"""Choosing tokens by score."""

from __future__ import annotations

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
