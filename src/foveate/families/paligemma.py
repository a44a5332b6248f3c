"""PaliGemma: a SigLIP tower without CLS, a linear connector, and positions that begin at 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .llava import OneSquare


class PaliGemma(OneSquare):
    """PaliGemma 1 and 2."""

    name = "paligemma"
    model_types = ("paligemma",)
    note = "the prompt's prefix sees itself in both directions"

    def positions(self, kwargs: dict[str, Any], past: int) -> Tensor:
        return super().positions(kwargs, past) + 1
