"""Mistral 3 with a Pixtral tower: pictures of any size packed into one sequence, 2 x 2 patches per token in raster order.

Rows of placeholders are separated by break tokens of the text, which stay.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .base import Family, Layout, block_source


class Mistral3(Family):
    """Mistral Small 3.1 and later."""

    name = "mistral3"
    model_types = ("mistral3",)
    has_cls = False
    resizable = True
    note = "any picture size; break tokens between rows are text and stay"

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        patch, merge = self.config.vision_config.patch_size, self.config.spatial_merge_size
        found = []
        for height, width in torch.as_tensor(arguments["image_sizes"]).tolist():
            h, w = height // (patch * merge), width // (patch * merge)
            found.append(Layout.grid(h, w, block_source(h * merge, w * merge, merge)))
        return found

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return self.full_layouts(arguments)

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        scale = self.config.vision_config.patch_size * self.config.spatial_merge_size
        old = torch.as_tensor(arguments["image_sizes"])
        new = torch.tensor([[h * scale, w * scale] for h, w in sizes], dtype=old.dtype, device=old.device)
        pixels = arguments["pixel_values"]
        canvas = pixels.new_zeros(*pixels.shape[:2], *new.amax(0).tolist())
        for i, ((height, width), (h, w)) in enumerate(zip(old.tolist(), new.tolist(), strict=True)):
            small = F.interpolate(pixels[i : i + 1, :, :height, :width].float(), (h, w), mode="bicubic", antialias=True)
            canvas[i : i + 1, :, :h, :w] = small.to(pixels.dtype)
        return {**arguments, "pixel_values": canvas, "image_sizes": new}
