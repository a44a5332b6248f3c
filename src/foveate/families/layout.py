"""Where the tokens of an image lie, and which of the tower's tokens feed each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where the n tokens of one unit lie.

    Attributes:
        row, col: (n,) place in the grid of the token's tile; for structure, the row and column it closes.
        tile: (n,) tile of each token, counted from 0 within the unit.
        kind: (n,) :class:`foveate.tokens.Kind`.
        grids: (rows, columns) of each tile's full token grid.
        boxes: (left, top, right, bottom) of each tile in the picture, in shares of its width and height.
        source: (n, s) tower tokens (CLS left out, tiles one after another) that were joined into each token; -1 where
            there are fewer than s, and for structure.
        patches: tower tokens of the unit, those that feed no token included; 0 stands for the largest in ``source``.
        line: (n,) line of text-like structure each token belongs to: a newline token stays if any content token of its
            line does. None where there is no such structure.

    All tensors are on the CPU: they follow from sizes, not from pixels, and reading them must not wait for a device.
    """

    row: Tensor
    col: Tensor
    tile: Tensor
    kind: Tensor
    grids: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    source: Tensor
    line: Tensor | None = None
    patches: int = 0

    def __post_init__(self) -> None:
        if not self.patches:
            object.__setattr__(self, "patches", int(self.source.max()) + 1)

    @property
    def n(self) -> int:
        return len(self.row)

    @classmethod
    def grid(cls, height: int, width: int, source: Tensor | None = None, box=(0.0, 0.0, 1.0, 1.0)) -> Layout:
        """One tile of ``height`` x ``width`` tokens in raster order; each its own tower token unless source is given."""
        index = torch.arange(height * width)
        zeros = torch.zeros_like(index)
        return cls(
            index // width,
            index % width,
            zeros,
            zeros,
            ((height, width),),
            (box,),
            index[:, None] if source is None else source,
        )

    @classmethod
    def join(cls, layouts: Sequence[Layout]) -> Layout:
        """Several units as one image: tiles and tower tokens are numbered on."""
        if len(layouts) == 1:
            return layouts[0]
        tiles = towers = lines = 0
        parts: list[tuple[Tensor, Tensor]] = []
        closing: list[Tensor] = []
        width = max(one.source.shape[1] for one in layouts)
        for one in layouts:
            source = torch.where(one.source >= 0, one.source + towers, one.source)
            line = torch.full_like(one.row, -1) if one.line is None else one.line + lines
            closing.append(line)
            lines = max(lines, int(line.max()) + 1)
            parts.append((one.tile + tiles, nn.functional.pad(source, (0, width - source.shape[1]), value=-1)))
            tiles += len(one.grids)
            towers += one.patches
        return cls(
            torch.cat([one.row for one in layouts]),
            torch.cat([one.col for one in layouts]),
            torch.cat([tile for tile, _ in parts]),
            torch.cat([one.kind for one in layouts]),
            tuple(g for one in layouts for g in one.grids),
            tuple(b for one in layouts for b in one.boxes),
            torch.cat([source for _, source in parts]),
            torch.cat(closing) if any(one.line is not None for one in layouts) else None,
            towers,
        )


def block_source(height: int, width: int, block: int) -> Tensor:
    """(height/block * width/block, block^2) raster indices of the patches that each block x block group joins."""
    index = torch.arange(height * width).view(height // block, block, width // block, block)
    return index.permute(0, 2, 1, 3).reshape(-1, block * block)
