"""Ovis2: visual tokens are mixtures of a visual vocabulary; the overview comes first.

Indicator tokens around the tiles get features of their own, which the encoder returns beside those of the tiles and
which stay as they are.
"""

from __future__ import annotations

from torch import Tensor

from .tiles import Tiles, after


class Ovis2(Tiles):
    """Ovis2."""

    name = "ovis2"
    model_types = ("ovis2",)
    overview = "first"
    note = "indicator tokens around tiles are text and stay"

    def block(self) -> int:
        return int(self.config.vision_config.hidden_stride)

    def row_ends(self, ids: Tensor, tiles: list[Tensor]) -> list[bool] | None:
        _, _, _, row, _ = self.config.visual_indicator_token_ids  # start, grid, column, row, end
        return [token == row for token in after(ids, tiles[:-1])]
