"""LLaVA-1.5: the convention, plus a connector that maps patch by patch and a CLIP tower that takes smaller pictures.

CLIP's position embeddings are interpolated for another size. Tower rows are CLS and then patches in raster order;
features come from the layer before the last, so scores do too.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from .base import Family, Layout


class FixedSquare(Family):
    """Families whose tower takes square pictures of one size, and other sizes by interpolated position embeddings."""

    resizable = True
    rowwise = "multi_modal_projector"

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        pixels, patch = arguments["pixel_values"], self.config.vision_config.patch_size
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        return [Layout.grid(height, width) for _ in range(len(pixels))]

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        if len(set(sizes)) > 1:  # one size in, one budget: it cannot happen unless pictures differ
            raise self._one_size()
        (height, width), patch = sizes[0], self.config.vision_config.patch_size
        pixels = F.interpolate(
            arguments["pixel_values"].float(), (height * patch, width * patch), mode="bicubic", antialias=True
        )
        return {
            **arguments,
            "pixel_values": pixels.to(arguments["pixel_values"].dtype),
            "interpolate_pos_encoding": True,
        }


class Llava(FixedSquare):
    """LLaVA-1.5 and its relatives with a CLIP or SigLIP tower."""

    name = "llava"
    model_types = ("llava",)
    note = "one square picture per image; CLS attention where the tower has a CLS token"
