"""Aya Vision: pixel shuffle inside the connector, a numbered marker before every tile, the overview last.

The markers count tiles; nothing in the prompt tells how they were arranged.
"""

from __future__ import annotations

from .tiles import Tiles


class AyaVision(Tiles):
    """Aya Vision."""

    name = "aya_vision"
    model_types = ("aya_vision",)
    note = "sliding-window layers, as Gemma 3; how tiles were arranged is guessed"

    def block(self) -> int:
        return int(self.config.downsample_factor)
