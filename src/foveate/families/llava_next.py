"""LLaVA-NeXT and LLaVA-OneVision: a base picture and tiles, their padding cut away, a newline token after every row.

An image's tokens are the base tile in raster order, then the rows of the tiles' common grid, each row closed by a
newline that no tower token feeds. How much of the grid is padding follows from the picture's size; the library's own
function is asked, on a grid of numbers instead of features.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..tokens import Kind
from .base import Family, Layout


class LlavaNext(Family):
    """LLaVA-NeXT (1.6)."""

    name = "llava_next"
    model_types = ("llava_next",)
    rowwise: ClassVar[str | None] = "multi_modal_projector"
    note = "tiles and newline tokens; a newline stays while any token of its row does"

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        sizes, limit = torch.as_tensor(arguments["image_sizes"]).tolist(), self._limit(arguments)
        tiled = self._tiled(arguments, len(sizes))
        return [self._one(size, tiles, limit) for size, tiles in zip(sizes, tiled, strict=True)]

    def _limit(self, arguments: dict[str, Any]) -> int | None:
        """Most tiles' worth of tokens that the grid may have before it is interpolated, or None."""
        return None

    def _tiled(self, arguments: dict[str, Any], images: int) -> list[bool]:
        return [True] * images

    def _one(self, size: list[int], tiled: bool, limit: int | None) -> Layout:
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        cell = torch.arange(side * side)
        base = torch.stack([cell // side, cell % side, torch.zeros_like(cell), cell, torch.full_like(cell, -1)])
        if not tiled:
            base[4] = 0
            newline = torch.tensor([[side - 1], [side - 1], [0], [-1], [0]])
            return _build(torch.cat([base, newline], 1), ((side, side),), ((0.0, 0.0, 1.0, 1.0),), side * side)
        rows, cols = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, vision.image_size)
        grid = torch.arange(rows * cols * side * side).view(rows, cols, side, side)
        grid = grid.permute(0, 2, 1, 3).reshape(rows * side, cols * side)
        grid = unpad_image(grid[None], list(size))[0]
        top, left = int(grid[0, 0]) % (side * side) // side, int(grid[0, 0]) % side
        whole = grid.shape
        grid = grid if limit is None else _interpolated(grid, limit * side**2)
        height, width = grid.shape
        tile, within = 1 + grid // (side * side), grid % (side * side)
        line = torch.arange(height)[:, None].expand(-1, width)
        body = torch.stack([within // side, within % side, tile, grid + side * side, line])  # (5, height, width)
        newline = body[:, :, -1:].clone()
        newline[3] = -1
        body = torch.cat([body, newline], 2).flatten(1)
        boxes = [(0.0, 0.0, 1.0, 1.0)]
        for r in range(rows):
            for c in range(cols):
                x, y = (c * side - left) / whole[1], (r * side - top) / whole[0]
                boxes.append((x, y, x + side / whole[1], y + side / whole[0]))
        grids = ((side, side),) * (1 + rows * cols)
        return _build(torch.cat([base, body], 1), grids, tuple(boxes), (1 + rows * cols) * side * side)


def _build(table: torch.Tensor, grids: tuple, boxes: tuple, patches: int) -> Layout:
    """A layout from rows (row, column, tile, tower token or -1 for a newline, line)."""
    row, col, tile, source, line = table
    kind = torch.where(source < 0, int(Kind.NEWLINE), int(Kind.CONTENT))
    return Layout(row, col, tile, kind, grids, boxes, source[:, None], line, patches)


def _interpolated(grid: torch.Tensor, most: int) -> torch.Tensor:
    """The numbered grid at the size to which features are interpolated when there are too many.

    Each new cell is given to the old one under its middle.
    """
    height, width = grid.shape
    ratio = math.sqrt(height * width / most)
    if ratio <= 1.1:
        return grid
    smaller = (int(height // ratio), int(width // ratio))
    return F.interpolate(grid[None, None].double(), smaller, mode="nearest-exact")[0, 0].long()


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision: SigLIP, no tiles where a prompt has several images, and a limit on the grid's size."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    rowwise = None  # a grid over the limit is interpolated after the connector
    note = "tiles and newline tokens; several images in one prompt are not tiled"

    def _limit(self, arguments: dict[str, Any]) -> int | None:
        aspect = arguments.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        return int(aspect.removeprefix("anyres_max_"))

    def _tiled(self, arguments: dict[str, Any], images: int) -> list[bool]:
        counts = arguments.get("batch_num_images")
        if counts is None:
            return [True] * images
        return [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]
