"""Mistral 3 with a Pixtral tower: pictures of any size packed into one sequence, 2 x 2 patches per token.

Rows of placeholders are separated by break tokens of the text, which stay.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import sized
from .base import Family
from .layout import Layout


class Mistral3(Family):
    """Mistral Small 3.1 and later."""

    name = "mistral3"
    model_types = ("mistral3",)
    has_cls = False
    resizable = True
    note = "any picture size; break tokens between rows are text and stay"

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        return sized.layouts(arguments, self.config.vision_config.patch_size, self.config.spatial_merge_size)

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return self.full_layouts(arguments)

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        return self.full_layouts(arguments)

    def pixels(self, given: Tensor, layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        return sized.pixels(given, arguments, self.config.vision_config.patch_size)

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        return sized.shrunk(arguments, sizes, self.config.vision_config.patch_size * self.config.spatial_merge_size)
