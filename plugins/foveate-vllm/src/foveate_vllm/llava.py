"""LLaVA-1.5 in vLLM, with a CLIP or SigLIP tower.

Without the key ``foveate`` all is vLLM's own, but one thing: embeddings of several lengths in one step, which stop the
stock class with an error, are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaForConditionalGeneration as Stock
from vllm.model_executor.models.llava import LlavaMultiModalProcessor, LlavaProcessingInfo

from foveate.families.llava import Llava

from .adapter import ShortTower
from .caching import Keyed
from .compressor import Compressor, groups
from .plans import left, plan_of
from .processing import processed


class Adapter(ShortTower, Llava):
    """Foveate's adapter around vLLM's model."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.passes_cls = False


class Info(LlavaProcessingInfo):
    """How many placeholders a picture gets: what the plan leaves."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        plan = plan_of(self.get_hf_config())
        assert plan is not None
        return left(plan, super().get_num_image_tokens(image_width=image_width, image_height=image_height))


class Processor(Keyed, LlavaMultiModalProcessor):
    """vLLM's, with hashes of its own."""


@processed(Stock, Info, Processor)
class LlavaForConditionalGeneration(Stock):
    """vLLM's class, whose pictures are compressed by the plan in the configuration."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        plan = plan_of(self.config)
        self.foveate = None if plan is None else Compressor(plan, Adapter(self))
        self._together = vllm_config.scheduler_config.max_num_batched_tokens

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """One (tokens, d) tensor per picture; embeddings that the caller computed pass as they are."""
        embeds = kwargs.get("image_embeds")
        if isinstance(embeds, (list, tuple)) and len({len(each) for each in embeds}) > 1:
            return tuple(each.reshape(-1, each.shape[-1]) for each in embeds)
        return super().embed_multimodal(**kwargs)

    def _process_image_input(self, image_input: Mapping[str, Any]) -> Any:
        if self.foveate is None or image_input["type"] != "pixel_values":
            return super()._process_image_input(image_input)
        pixels: Tensor = image_input["pixel_values"]
        size = self.foveate.family.full_layouts({"pixel_values": pixels[:1]})[0].n
        kept: list[Tensor] = []
        for part in groups([size] * len(pixels), self._together):
            some = pixels[part]
            pictures = self.foveate(lambda some=some: self._encoded(some), {"pixel_values": some})
            kept += [picture.x for picture in pictures]
        return tuple(kept)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return super()._process_image_input({"type": "pixel_values", "pixel_values": pixels})
