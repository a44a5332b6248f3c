"""LLaVA-NeXT: a base picture and tiles, their padding cut away, a newline token after every row.

An image's tokens are the base tile in raster order, then the rows of the tiles' common grid, each row closed by a
newline that no tower token feeds. How much of the grid is padding follows from the picture's size; the library's own
function is asked, on a grid of numbers instead of features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..tokens import Kind
from .base import Family
from .layout import Layout

Box = tuple[float, float, float, float]


class LlavaNext(Family):
    """LLaVA-NeXT (1.6)."""

    name = "llava_next"
    model_types = ("llava_next",)
    rowwise = "multi_modal_projector"
    fixed = "cuts pictures into tiles of one size only"
    note = "tiles and newline tokens; a newline stays while any token of its row does"

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return [self.tiled(size) for size in torch.as_tensor(arguments["image_sizes"]).tolist()]

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        return self.layouts(arguments, None)

    def side(self) -> int:
        """Tokens per side of a tile."""
        return int(self.config.vision_config.image_size // self.config.vision_config.patch_size)

    def tiled(self, size: list[int], most: float = math.inf) -> Layout:
        """The layout of a picture in tiles.

        Args:
            size: height and width of the picture.
            most: tokens of the tiles' grid above which the library interpolates it to fewer.
        """
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        side, pixels = self.side(), self.config.vision_config.image_size
        rows, cols = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, pixels)
        cells = torch.arange((1 + rows * cols) * side * side)
        grid = cells[side * side :].view(rows, cols, side, side).permute(0, 2, 1, 3).reshape(rows * side, cols * side)
        grid = unpad_image(grid[None], list(size))[0]
        middle, source = _interpolated(grid, most)
        height, width = middle.shape
        source = torch.nn.functional.pad(source, (0, 0, 0, 1), value=-1).flatten(0, 1)  # a newline closes each row
        place = torch.cat([middle, middle[:, -1:]], 1).flatten()
        base = torch.nn.functional.pad(cells[: side * side, None], (0, source.shape[1] - 1), value=-1)
        line = torch.arange(height)[:, None].expand(-1, width + 1).flatten()
        return Layout(
            row=torch.cat([base[:, 0], place]) % side**2 // side,
            col=torch.cat([base[:, 0], place]) % side,
            tile=torch.cat([base[:, 0], place]) // side**2,
            kind=torch.cat([base, source])[:, 0].lt(0).long() * int(Kind.NEWLINE),
            grids=((side, side),) * (1 + rows * cols),
            boxes=((0.0, 0.0, 1.0, 1.0), *_boxes(size, rows, cols, pixels)),
            source=torch.cat([base, source]),
            line=torch.cat([torch.full_like(base[:, 0], -1), line]),
            patches=len(cells),
        )


def _boxes(size: list[int], rows: int, cols: int, pixels: int) -> list[Box]:
    """Where the tiles lie in the picture, which was scaled to fit their canvas and put into its middle."""
    scale = min(rows * pixels / size[0], cols * pixels / size[1])
    height, width = min(math.ceil(size[0] * scale), rows * pixels), min(math.ceil(size[1] * scale), cols * pixels)
    top, left = (rows * pixels - height) // 2, (cols * pixels - width) // 2
    return [
        ((x - left) / width, (y - top) / height, (x + pixels - left) / width, (y + pixels - top) / height)
        for y in range(0, rows * pixels, pixels)
        for x in range(0, cols * pixels, pixels)
    ]


def _interpolated(grid: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """A numbered grid (rows, columns) after bilinear interpolation, if it is larger than ``most`` tokens by a fifth.

    Returns:
        For each new cell the old one under its middle, (rows', columns'), and all that feed it, (rows', columns', s).
    """
    ratio = math.sqrt(grid.numel() / most)
    if ratio <= 1.1:
        return grid, grid[..., None]
    y, x = (_taps(n, int(n // ratio)) for n in grid.shape)
    source = torch.where((y[:, None, :, None] < 0) | (x[:, None] < 0), -1, grid[y[:, None, :, None], x[:, None]])
    middle = torch.nn.functional.interpolate(grid[None, None].double(), (len(y), len(x)), mode="nearest-exact")
    return middle[0, 0].long(), source.flatten(2)


def _taps(before: int, now: int) -> Tensor:
    """(now, 2) the two cells of one axis between which each new cell's middle lies; -1 if the second has no weight."""
    middle = ((torch.arange(now).double() + 0.5) * before / now - 0.5).clamp(min=0)
    low = middle.long()
    high = torch.where((middle > low) & (low + 1 < before), low + 1, -1)
    return torch.stack([low, high], 1)
