"""LLaVA-OneVision: LLaVA-NeXT's tiles, except where a prompt has several images, and a limit on the size of their grid.

A picture that is not cut is one tile and one newline. A grid over the limit is interpolated after the connector, so
that a token joins up to four patches of the tower.
"""

from __future__ import annotations

from typing import Any

import torch

from ..tokens import Kind
from .layout import Layout
from .llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision, with a SigLIP tower without CLS."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    note = "tiles and newline tokens; several images in one prompt are not tiled"

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
        aspect = arguments.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        most = int(aspect.removeprefix("anyres_max_")) * self.side() ** 2
        counts = arguments.get("batch_num_images")
        tiled = [True] * len(sizes)
        if counts is not None:
            tiled = [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]
        return [self.tiled(size, most) if cut else self._whole() for size, cut in zip(sizes, tiled, strict=True)]

    def _whole(self) -> Layout:
        side = self.side()
        tile, one = Layout.grid(side, side), torch.ones(1, dtype=torch.long)
        return Layout(
            torch.cat([tile.row, (side - 1) * one]),
            torch.cat([tile.col, (side - 1) * one]),
            torch.cat([tile.tile, 0 * one]),
            torch.cat([tile.kind, int(Kind.NEWLINE) * one]),
            tile.grids,
            tile.boxes,
            torch.cat([tile.source, -one[None]]),
            torch.zeros(side * side + 1, dtype=torch.long),
        )
