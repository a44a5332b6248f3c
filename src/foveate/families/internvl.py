"""InternVL: a CLS token, pixel shuffle before the connector, all tiles of an image in one run of placeholders.

The thumbnail comes last. Nothing in the prompt tells how the tiles were arranged.
"""

from __future__ import annotations

from .tiles import Tiles


class InternVL(Tiles):
    """InternVL 2.5 to 3.5 in their transformers form."""

    name = "internvl"
    model_types = ("internvl",)
    has_cls = True
    marked = False
    note = "tiles share one budget per image; how they were arranged is guessed"

    def block(self) -> int:
        return round(1 / self.config.downsample_ratio)
