"""Gemma 3: every picture, also every crop of "pan and scan", becomes a fixed number of tokens by average pooling."""

from __future__ import annotations

import math

from .tiles import Tiles


class Gemma3(Tiles):
    """Gemma 3."""

    name = "gemma3"
    model_types = ("gemma3",)
    overview = "alone"
    fixed = "pools a grid of one size only"
    note = 'sliding-window layers: positions="contiguous" keeps windows whole once the prompt is longer than one'

    def block(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size // math.isqrt(self.config.mm_tokens_per_image))
