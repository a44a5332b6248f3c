"""LLaVA-1.5: the convention, plus a connector that maps patch by patch and a tower that takes pictures of other sizes.

Position embeddings of CLIP and SigLIP are interpolated for another size. With a Pixtral tower (Pixtral 12B is a LLaVA)
pictures have sizes of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import Kind
from . import sized
from .base import Family
from .layout import Layout


class OneSquare(Family):
    """Families whose pictures are squares of one size, for a tower that takes others by interpolated positions."""

    resizable = True
    rowwise: str | None = "multi_modal_projector"

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        pixels, patch = arguments["pixel_values"], self.config.vision_config.patch_size
        return [Layout.grid(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * len(pixels)

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return self.full_layouts(arguments)

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        return self.layouts(arguments, None)

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        (height, width), patch = sizes[0], self.config.vision_config.patch_size
        if len(set(sizes)) > 1:  # equal pictures under one budget: nobody asks for this
            raise self.one_size()
        pixels = sized.resized(arguments["pixel_values"], height * patch, width * patch)
        if pixels is arguments["pixel_values"]:
            return arguments
        return {**arguments, "pixel_values": pixels, "interpolate_pos_encoding": True}


class Llava(OneSquare):
    """LLaVA-1.5 and its relatives with a CLIP, SigLIP or Pixtral tower."""

    name = "llava"
    model_types = ("llava",)
    note = "one square picture per image; CLS attention where the tower has a CLS token"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.passes_cls = self.config.vision_feature_select_strategy == "full" and self.cls_row() is not None
        if self.passes_cls:
            self.rowwise, self.resizable = None, False
            self.fixed = "passes a CLS token on, which has no place in a grid"

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        if arguments.get("image_sizes") is not None:
            return sized.layouts(arguments, self.config.vision_config.patch_size, 1)
        return super().full_layouts(arguments)

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        found = self.full_layouts(arguments)
        return [_with_cls(one) for one in found] if self.passes_cls else found

    def pixels(self, given: Tensor, layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        if arguments.get("image_sizes") is not None:
            return sized.pixels(given, arguments, self.config.vision_config.patch_size)
        return super().pixels(given, layouts, arguments)

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        if arguments.get("image_sizes") is not None:
            return sized.shrunk(arguments, sizes, self.config.vision_config.patch_size)
        return super().shrunk(arguments, sizes)


def _with_cls(one: Layout) -> Layout:
    """The CLS token is passed on, before the others."""
    row, col, tile, kind = (torch.cat([x[:1] * 0, x]) for x in (one.row, one.col, one.tile, one.kind))
    kind[0] = int(Kind.CLS)
    return Layout(row, col, tile, kind, one.grids, one.boxes, torch.cat([-torch.ones_like(one.source[:1]), one.source]))
