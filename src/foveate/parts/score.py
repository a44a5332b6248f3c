"""Numbers per token that several methods start from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError
from ..tokens import View
from .similarity import unit


def known(score: Tensor) -> Tensor:
    """The same scores (n,), in float32 at least.

    Raises:
        MethodError: if one is NaN or infinite.
    """
    wide = score.float() if score.dtype in (torch.float16, torch.bfloat16) else score
    if bad := int((~wide.isfinite()).sum()):
        raise MethodError(
            f"{bad} of {len(score)} scores are NaN or infinite",
            hint="look for overflow in what the score is made of (fp16 outside autocast?)",
        )
    return wide


def minmax(score: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Scores (n,) moved and scaled to the range from 0 to just below 1; all 0 if they are equal.

    Args:
        score: (n,) finite.
        epsilon: added to the range that is divided by.
    """
    low, high = score.min(), score.max()
    return (score - low) / (high - low + epsilon)


def relevance(view: View) -> Tensor:
    """(n,) how much each token has to do with the question; higher is more.

    An outside text encoder's verdict, the optional extra "relevance" (n,), if the view carries it; otherwise the mean
    cosine between the token and the words of the question, "question" (q, d), in the language model's embedding space.
    A question without words is equally relevant to all.

    Raises:
        MethodError: if the view carries neither, or a value is NaN or infinite.
    """
    if "relevance" in view.extras:
        return known(view.extras["relevance"].value)
    words = view.need("question")
    if not len(words):
        return torch.zeros(view.n, device=view.x.device)
    rows, directions = unit(view.x)[0], unit(words)[0]
    return rows @ directions.mean(0).to(rows.dtype)  # one product: the mean of cosines is the product with the mean
