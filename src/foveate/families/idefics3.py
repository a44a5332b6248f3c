"""Idefics3 and SmolVLM: the encoder lists the tiles of a sample, or of all samples, in one tensor.

Before each tile stand a fake token and the tile's row and column; a row of tiles ends in a line break; the overview
comes last. transformers before 5.20 returns one tensor (tiles, tokens, d), later ones a list of one (tokens, d) tensor
per sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tiles import Tiles, after


class Idefics3(Tiles):
    """Idefics3, SmolVLM and SmolVLM2."""

    name = "idefics3"
    model_types = ("idefics3", "smolvlm")
    note = "tile markers are text and stay"

    def block(self) -> int:
        return int(self.config.scale_factor)

    def tile_tokens(self, output: Any) -> int:
        vision = self.config.vision_config
        return int((vision.image_size // vision.patch_size // self.block()) ** 2)

    def row_ends(self, ids: Tensor, tiles: list[Tensor]) -> list[bool] | None:
        fake = ids[(tiles[0][0] - 2).clamp(min=0)].item()
        return [token != fake for token in after(ids, tiles[:-1])]

    def replaced(self, output: Any, features: list[Tensor], planes: list[Tensor], equal: bool = False) -> Any:
        new = super().replaced(output, features, planes, equal)
        if isinstance(output[self.features], Tensor) and not equal:
            # transformers < 5.20 divides placeholders by the length of the second axis: let it be 1
            new[self.features] = torch.cat(features)[:, None]
        return new
