"""What families share whose encoder returns tiles and does not say which of them make an image.

Each tile is a unit: a square of tokens in raster order that each join a block of patches. Which tiles belong together
is read from the prompt, where processors put markers around them; so is the arrangement of the tiles, where there is a
marker for the end of a row of tiles. Without one the most square arrangement is assumed, wide rather than tall: a guess
that decides where pictures of kept tokens light up, and nothing else.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .base import Family
from .layout import Layout, block_source

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Tiles(Family):
    """Tiles of one size, and an overview picture of the same size.

    Attributes:
        overview: where the processor puts the overview ("global" tile, thumbnail): "first", "last", or "alone" if every
            tile is an image.
        marked: whether a token of its own stands before the overview; else the tiles of an image touch.
    """

    overview: ClassVar[str] = "last"
    marked: ClassVar[bool] = True
    has_cls = False
    fixed = "cuts pictures into tiles of one size only"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.units_are_images = self.overview == "alone"

    def block(self) -> int:
        """Patches per side of a token."""
        return 2

    def tile_tokens(self, output: Any) -> int:
        """Tokens of one tile."""
        return int(output[self.features].shape[1])

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        n = self.tile_tokens(output)
        side, block = math.isqrt(n), self.block()
        tile = Layout.grid(side, side, block_source(side * block, side * block, block))
        return [tile] * (sum(map(len, self.rows(output))) // n)

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        side, block = math.isqrt(patches), self.block()
        if side * side != patches or side % block:
            raise UnsupportedError(
                f"tiles of {patches} patches are no squares of whole {block} x {block} blocks",
                where=f"family {self.name}, stage encoder",
                hint="a method of the connector stage",
            )
        return [Layout.grid(side // block, side // block, block_source(side, side, block))] * tiles

    def group(self, ids: Tensor, places: list[Tensor]) -> list[list[int]]:
        if not places or self.overview == "alone":
            return [[i] for i in range(len(places))]
        first, last = _ends(places)
        if self.marked:
            before = _at(ids, [max(f - 1, 0) for f in first])
            marks = [token == before[0 if self.overview == "first" else -1] for token in before]
            starts = marks if self.overview == "first" else [True, *marks[:-1]]
        else:
            starts = [i == 0 or first[i] != last[i - 1] + 1 for i in range(len(first))]
        groups: list[list[int]] = []
        for i, start in enumerate(starts):
            if start or not groups:
                groups.append([])
            groups[-1].append(i)
        return groups

    def boxes(self, ids: Tensor, places: list[Tensor]) -> tuple[Box, ...] | None:
        """Tiles as shares of the picture that was cut, row by row; the overview shows all of it.

        Where a processor pads the picture before cutting (Llama 4), padding counts as picture.
        """
        if len(places) < 2:
            return None
        tiles = places[1:] if self.overview == "first" else places[:-1]
        rows, cols = arrangement(len(tiles), self.row_ends(ids, tiles))
        grid = [(c / cols, r / rows, (c + 1) / cols, (r + 1) / rows) for r in range(rows) for c in range(cols)]
        return (WHOLE, *grid) if self.overview == "first" else (*grid, WHOLE)

    def row_ends(self, ids: Tensor, tiles: list[Tensor]) -> list[bool] | None:
        """For each tile but the last, whether it ends a row of tiles; None if the prompt does not say.

        Args:
            ids: (L,) token ids of the prompt.
            tiles: positions of the placeholders of each tile of an image, the overview left out.
        """
        return None


def arrangement(count: int, ends: list[bool] | None) -> tuple[int, int]:
    """Rows and columns of ``count`` tiles. ends: see :meth:`Tiles.row_ends`."""
    if ends is not None:
        cols = next((i + 1 for i, end in enumerate(ends) if end), count)
        if count % cols == 0 and [i + 1 for i, end in enumerate(ends) if end] == list(range(cols, count, cols)):
            return count // cols, cols
    rows = max(r for r in range(1, math.isqrt(count) + 1) if count % r == 0)
    return rows, count // rows


def after(ids: Tensor, tiles: list[Tensor]) -> list[int]:
    """The token that follows each tile; -1 at the end of the prompt."""
    _, last = _ends(tiles)
    found = _at(ids, [min(i + 1, len(ids) - 1) for i in last])
    return [token if i + 1 < len(ids) else -1 for token, i in zip(found, last, strict=True)]


def _ends(places: list[Tensor]) -> tuple[list[int], list[int]]:
    """First and last place of each tile, read from the device at once."""
    first, last = torch.stack([torch.stack([p[0], p[-1]]) for p in places]).T.tolist()
    return first, last


def _at(ids: Tensor, index: list[int]) -> list[int]:
    return ids[torch.tensor(index, device=ids.device)].tolist()
