"""Families whose encoder returns tiles and does not say which tiles make an image: InternVL, Idefics3, SmolVLM, Aya
Vision, Llama 4, Ovis2, Gemma 3.

Each tile is a unit: a square of tokens in raster order that each join a block of patches. Which tiles belong together
is read from the prompt, where processors mark the overview picture ("global" tile, thumbnail) by a token of its own. How
the other tiles were laid out is read from the gaps between them where rows end in a longer gap; where nothing tells,
the most square arrangement is assumed. That guess decides where pictures of kept tokens light up, and nothing else.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Family, Layout, block_source

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Tiles(Family):
    """Tiles of one size.

    Attributes:
        overview: where the processor puts the overview picture of an image: "first", "last", or "alone" if every tile
            is an image.
        marked: whether the overview is marked by the token before it; else tiles of an image touch.
    """

    overview: ClassVar[str] = "last"
    marked: ClassVar[bool] = True
    has_cls = False

    def block(self) -> int:
        """Patches per side of a token."""
        return 2

    def tile_tokens(self, output: Any) -> int:
        """Tokens of one tile."""
        return int(output[self.features].shape[1])

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        n = self.tile_tokens(output)
        side, block = math.isqrt(n), self.block()
        source = block_source(side * block, side * block, block)
        return [Layout.grid(side, side, source) for _ in range(sum(map(len, self.rows(output))) // n)]

    def group(self, ids: Tensor, places: list[Tensor]) -> list[list[int]]:
        if not places or self.overview == "alone":
            return [[i] for i in range(len(places))]
        first = torch.stack([p[0] for p in places]).tolist()
        last = torch.stack([p[-1] for p in places]).tolist()
        if self.marked:
            token = ids[torch.tensor([max(f - 1, 0) for f in first], device=ids.device)].tolist()
            special = [t == token[0 if self.overview == "first" else -1] for t in token]
            starts = special if self.overview == "first" else [True, *special[:-1]]
        else:
            starts = [i == 0 or first[i] != last[i - 1] + 1 for i in range(len(first))]
        groups: list[list[int]] = []
        for i, start in enumerate(starts):
            if start or not groups:
                groups.append([])
            groups[-1].append(i)
        return groups

    def boxes(self, ids: Tensor, places: list[Tensor]) -> tuple[Box, ...] | None:
        count = len(places) - 1
        if count < 1:
            return None
        tiles = places[1:] if self.overview == "first" else places[:-1]
        rows, cols = arrangement([int(b[0] - a[-1]) for a, b in pairwise(tiles)])
        grid = [(c / cols, r / rows, (c + 1) / cols, (r + 1) / rows) for r in range(rows) for c in range(cols)]
        return (WHOLE, *grid) if self.overview == "first" else (*grid, WHOLE)


def arrangement(gaps: list[int]) -> tuple[int, int]:
    """Rows and columns of len(gaps) + 1 tiles from the distances between neighbours; the most square if they are equal."""
    count = len(gaps) + 1
    ends = [i + 1 for i, gap in enumerate(gaps) if gap > min(gaps)]
    cols = ends[0] if ends else count
    if ends == list(range(cols, count, cols)) and count % cols == 0 and ends:
        return count // cols, cols
    rows = max(r for r in range(1, math.isqrt(count) + 1) if count % r == 0)
    return rows, count // rows


class InternVL(Tiles):
    """InternVL: CLS, pixel shuffle by 2, tiles of an image in one run of placeholders, the thumbnail last."""

    name = "internvl"
    model_types = ("internvl",)
    has_cls = True
    marked = False
    note = "tiles share one budget per image; how they were laid out is guessed"

    def block(self) -> int:
        return round(1 / self.config.downsample_ratio)


class Gemma3(Tiles):
    """Gemma 3: every picture becomes a fixed number of tokens by average pooling."""

    name = "gemma3"
    model_types = ("gemma3",)
    overview = "alone"
    note = 'sliding-window layers: positions="contiguous" keeps windows whole once the prompt is longer than one'

    def block(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size // math.isqrt(self.config.mm_tokens_per_image)


class Idefics3(Tiles):
    """Idefics3 and SmolVLM: the encoder lists the tiles of a sample in one tensor; rows of tiles end in a line break."""

    name = "idefics3"
    model_types = ("idefics3", "smolvlm")
    note = "tile markers are text and stay"

    def block(self) -> int:
        return int(self.config.scale_factor)

    def tile_tokens(self, output: Any) -> int:
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size // self.block()) ** 2

    def replaced(self, output: Any, features: list[Tensor], planes: list[Tensor], equal: bool = False) -> Any:
        new = super().replaced(output, features, planes, equal)
        if isinstance(output[self.features], Tensor) and not equal:
            # transformers < 5.20 divides placeholders by the length of the second axis: let it be 1
            new[self.features] = torch.cat(features)[:, None]
        return new


class AyaVision(Tiles):
    """Aya Vision: pixel shuffle inside the connector."""

    name = "aya_vision"
    model_types = ("aya_vision",)
    note = "sliding-window layers, as Gemma 3; how tiles were laid out is guessed"

    def block(self) -> int:
        return int(self.config.downsample_factor)


class Llama4(Tiles):
    """Llama 4: no core; features leave the encoder before the last projection; the CLS token stands last."""

    name = "llama4"
    model_types = ("llama4",)
    features = "last_hidden_state"
    note = "chunked attention layers; beams with images fail in transformers itself"

    core_name = ""  # the top-level model is the core

    def block(self) -> int:
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    def cls_row(self) -> int | None:
        return -1


class Ovis2(Tiles):
    """Ovis2: visual tokens are mixtures of a visual vocabulary; the thumbnail comes first."""

    name = "ovis2"
    model_types = ("ovis2",)
    overview = "first"
    note = "indicator tokens around tiles are text and stay"

    def block(self) -> int:
        return int(self.config.vision_config.hidden_stride)
