"""Llama 4: no core model; features leave the encoder before the last projection; the tower's CLS token stands last.

Tiles are separated by one token inside a row and by another after it, the last row included; the overview comes last.
"""

from __future__ import annotations

from typing import Any

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

    def block_argument(self, name: str, value: Any, places: Tensor) -> Any:
        return _Rotation(value[places]) if name == "freqs_ci" else super().block_argument(name, value, places)

    def row_ends(self, ids: Tensor, tiles: list[Tensor]) -> list[bool] | None:
        *between, last = after(ids, tiles)
        return [token == last for token in between]


class _Rotation:
    """Rotary factors that differ from tile to tile; the model only asks for one table in a shape that serves them all."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors  # (tiles, tokens, 1, width / 2)

    def view(self, *shape: int) -> Tensor:
        """The factors for queries (tiles, tokens, heads, width / 2)."""
        return self.factors
