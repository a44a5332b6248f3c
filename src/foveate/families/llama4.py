"""Llama 4: no core model; features leave the encoder before the last projection; the tower's CLS token stands last.

Tiles are separated by one token inside a row and by another after it, the last row included; the overview comes last.
"""

from __future__ import annotations

from torch import Tensor

from .tiles import Tiles, after


class Llama4(Tiles):
    """Llama 4."""

    name = "llama4"
    model_types = ("llama4",)
    core_name = ""  # no attribute has this name: the top-level model is the core
    features = "last_hidden_state"
    note = "chunked attention layers; beams with images fail in transformers itself"

    def block(self) -> int:
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    def cls_row(self) -> int | None:
        return -1

    def row_ends(self, ids: Tensor, tiles: list[Tensor]) -> list[bool] | None:
        *between, last = after(ids, tiles)
        return [token == last for token in between]
