"""LLaVA-OneVision in vLLM: pictures of any size, cut into tiles, a newline token after every row.

A plan chooses among the content, and every newline stays; :mod:`foveate_vllm.newlines` says why. Videos are not taken
while a plan is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionForConditionalGeneration as Stock,
)
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
    get_anyres_image_grid_shape,
)
from vllm.multimodal.parse import ImageSize

from foveate.errors import KeepError, UnsupportedError
from foveate.families import Layout
from foveate.families.llava_onevision import LlavaOnevision

from . import newlines
from .adapter import ShortTower
from .caching import Keyed
from .compressor import Compressor, groups
from .plans import left, plan_of
from .processing import processed


class Adapter(ShortTower, LlavaOnevision):
    """Foveate's adapter around vLLM's model, under the rule that every newline stays."""

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return newlines.every(super().layouts(arguments, output))


class Info(LlavaOnevisionProcessingInfo):
    """How many placeholders a picture gets: what the plan leaves of its content, and all newlines."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": super().get_supported_mm_limits()["image"]}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        if modality == "video" and num_items:
            raise UnsupportedError(
                "a video",
                where="LLaVA-OneVision, vLLM with a plan",
                hint="pictures, or an engine without the key foveate",
            )
        super().validate_num_items(modality, num_items)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        plan = plan_of(self.get_hf_config())
        assert plan is not None
        lines = self._lines(image_width, image_height)
        content = super().get_num_image_tokens(image_width=image_width, image_height=image_height) - lines
        return left(plan, content) + lines

    def _lines(self, width: int, height: int) -> int:
        """Rows of a picture's tiles without their padding, each of which a newline ends."""
        tower = self.get_vision_encoder_info()
        rows, columns = get_anyres_image_grid_shape(
            (height, width), self.get_hf_config().image_grid_pinpoints, tower.get_image_size()
        )
        _, lines = self._get_num_unpadded_features(
            original_height=height,
            original_width=width,
            npatches=tower.get_patch_grid_length(),
            num_patch_height=rows,
            num_patch_width=columns,
        )
        return lines

    def get_image_size_with_most_features(self) -> ImageSize:
        return self._largest

    @cached_property
    def _largest(self) -> ImageSize:
        """The size of which most is left. vLLM knows one for published grids; under a plan other pictures are the largest.

        What is left depends on the chosen grid and on its rows and columns without padding; each is tried once.
        """
        most, found, fault = 0, None, None
        for size in self._sizes():
            try:
                count = self.get_num_image_tokens(image_width=size.width, image_height=size.height)
            except KeepError as error:  # a strict budget that this size cannot meet; such pictures are refused
                fault = error
                continue
            if count > most:
                most, found = count, size
        if found is None:
            assert fault is not None
            raise fault
        return found

    def _sizes(self) -> Iterator[ImageSize]:
        tower = self.get_vision_encoder_info()
        pixels, side = tower.get_image_size(), tower.get_patch_grid_length()
        for height, width in self.get_hf_config().image_grid_pinpoints:
            for cut in range(0, height // pixels * side, 2):  # padding has two sides
                yield ImageSize(width, height - math.floor(cut * pixels / side))
            for cut in range(2, width // pixels * side, 2):
                yield ImageSize(width - math.floor(cut * pixels / side), height)


class Processor(Keyed, LlavaOnevisionMultiModalProcessor):
    """vLLM's, with hashes of its own."""


@processed(Stock, Info, Processor)
class LlavaOnevisionForConditionalGeneration(Stock):
    """vLLM's class, whose pictures are compressed by the plan in the configuration."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        plan = plan_of(self.config)
        self.foveate = None if plan is None else Compressor(plan, Adapter(self))
        self._together = vllm_config.scheduler_config.max_num_batched_tokens

    def _process_image_input(self, image_input: Any) -> Any:
        if self.foveate is None or image_input["type"] != "pixel_values":
            return super()._process_image_input(image_input)
        sizes: Tensor = image_input["image_sizes"]
        layouts = self.foveate.family.layouts({"image_sizes": sizes}, None)
        # Pictures that were made ready together have tiles of zeros up to the number of the largest.
        side = self.foveate.family.side()
        pixels = [
            tiles[: layout.patches // side**2]
            for tiles, layout in zip(image_input["pixel_values"], layouts, strict=True)
        ]
        kept: list[Tensor] = []
        for part in groups([layout.n for layout in layouts], self._together):
            some = {"type": "pixel_values", "pixel_values": pixels[part], "image_sizes": sizes[part]}
            kept += [picture.x for picture in self.foveate(lambda some=some: self._encoded(some), some)]
        return tuple(kept)

    def _encoded(self, some: Any) -> Any:
        return super()._process_image_input(some)
