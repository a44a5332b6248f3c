"""Qwen2.5-VL in vLLM: pictures of any size, kept tokens at their own places in a three-dimensional count of positions.

vLLM can recount positions after it has left out tokens of a video. That machinery carries the places of the tokens that
stay, as further columns of their features. What is counted here is our own: text continues after a picture as if
nothing had been left out, as it does in transformers, so its positions are known from the start, and what is filled in
later are rows and columns of the pictures' tokens. On the first axis a picture's tokens all have the position at which
the picture begins, so filling in needs no memory of what came before, in chunks, after a cached prefix, and again.

Videos are not taken while a plan is set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration as Stock,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal.parse import ImageProcessorItems
from vllm.platforms import current_platform

from foveate.errors import UnsupportedError
from foveate.families.qwen import Qwen25VL

from .caching import Keyed
from .compressor import Compressor, groups
from .plans import left, plan_of
from .processing import processed

DIGIT = 128  # rows and columns travel as two digits each: bfloat16 holds whole numbers up to 256 only
COLUMNS = 4


class Adapter(Qwen25VL):
    """Foveate's adapter around vLLM's model."""

    def __init__(self, model: Any) -> None:
        self.model, self.core, self.config = model, model, model.config

    def blocks(self) -> Any:
        return self.model.visual.blocks

    def attention(self, layer: int) -> Any:
        return self.blocks()[layer].attn.attn


def _borders(arguments: dict[str, Any]) -> Tensor:
    """Where each frame begins among the tower's rows, as in its blocks with full attention."""
    frames = [h * w for t, h, w in arguments["image_grid_thw"].tolist() for _ in range(t)]
    return torch.tensor([0, *frames]).cumsum(0)


class Info(Qwen2_5_VLProcessingInfo):
    """How many placeholders a picture gets: what the plan leaves."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": super().get_supported_mm_limits()["image"]}

    def left(self, tokens: int) -> int:
        """Tokens that are left of a picture's."""
        plan = plan_of(self.get_hf_config())
        assert plan is not None
        return left(plan, tokens)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        most = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        return most and {name: self.left(count) for name, count in most.items() if name == "image"}


class Processor(Keyed, Qwen2_5_VLMultiModalProcessor):
    """vLLM's, with hashes of its own, and shorter placeholders for pictures."""

    info: Info

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        if "image" in mm_items and not isinstance(mm_items["image"], ImageProcessorItems):
            raise UnsupportedError(
                "embeddings instead of a picture: how text is numbered after it follows from its grid",
                where="Qwen2.5-VL, vLLM with a plan",
                hint="send the pictures",
            )
        return [
            replace(update, replacement=self._shorter(update.replacement)) if update.modality == "image" else update
            for update in super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        ]

    def _shorter(self, replacement: Any) -> Any:
        def short(item: int) -> list[int]:
            full = replacement(item)
            return full[: self.info.left(len(full))]

        return short


@processed(Stock, Info, Processor)
class Qwen2_5_VLForConditionalGeneration(Stock):  # noqa: N801 (vLLM shows a class by its name)
    """vLLM's class, whose pictures are compressed by the plan in the configuration."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        plan = plan_of(self.config)
        self.foveate = None if plan is None else Compressor(plan, Adapter(self), _borders)
        self._together = vllm_config.scheduler_config.max_num_batched_tokens
        if plan is not None and current_platform.is_cpu():
            _recount_on_cpu()

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _process_image_input(self, image_input: Any) -> Any:
        if self.foveate is None:
            return super()._process_image_input(image_input)
        grids: Tensor = image_input["image_grid_thw"]
        patches = grids.prod(-1).tolist()
        pixels = image_input["pixel_values"].split(patches)
        unit = self.visual.spatial_merge_size**2
        kept: list[Tensor] = []
        for part in groups([count // unit for count in patches], self._together):
            some = {"type": "pixel_values", "pixel_values": torch.cat(pixels[part]), "image_grid_thw": grids[part]}
            for picture in self.foveate(lambda some=some: self._encoded(some), some):
                layout = picture.layout
                places = torch.stack([layout.row // DIGIT, layout.row % DIGIT, layout.col // DIGIT, layout.col % DIGIT])
                kept.append(torch.cat([picture.x, places.T.to(picture.x)], 1))
        return tuple(kept)

    def _encoded(self, some: Any) -> Any:
        return super()._process_image_input(some)

    def _postprocess_image_embeds_evs(self, image_embeds_split: Any, image_input: Any) -> Any:
        if self.foveate is None:
            return super()._postprocess_image_embeds_evs(image_embeds_split, image_input)
        return image_embeds_split  # they carry their places already

    # -- positions -----------------------------------------------------------------------------------------------------

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> tuple[Tensor, int]:
        """(3, tokens) positions, those of pictures to be filled in; and how far decoding runs ahead of the tokens."""
        if self.foveate is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        if self.foveate.plan.positions == "contiguous":
            return torch.arange(len(input_tokens)).expand(3, -1).clone(), 0
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        pieces: list[Tensor] = []
        done = following = 0  # tokens, and the position that comes next
        for (offset, frames, rows, columns, _), feature in zip(self.iter_mm_grid_thw(features), features, strict=True):
            pieces.append(torch.arange(following, following + offset - done))
            begins = following + offset - done
            pieces.append(torch.full((feature.mm_position.length,), begins))
            done, following = offset + feature.mm_position.length, begins + max(frames, rows, columns)
        rest = len(input_tokens) - done
        pieces.append(torch.arange(following, following + rest))
        return torch.cat(pieces).expand(3, -1).clone(), following + rest - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Any,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Fill in rows and columns of the pictures' tokens in this step, and take the columns that carried them off."""
        if self.foveate is None:
            return super().recompute_mrope_positions(
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        positions: Tensor = mrope_positions
        if len(multimodal_embeddings) and self.foveate.plan.positions == "original":
            places = torch.cat([each[:, -COLUMNS:] for each in multimodal_embeddings]).to(positions.device).long()
            grid = torch.stack([places[:, 0] * DIGIT + places[:, 1], places[:, 2] * DIGIT + places[:, 3]])
            ids = torch.as_tensor(input_ids, device=positions.device)
            media = (ids[num_computed_tokens:] == self.config.image_token_id).nonzero()[: len(places), 0]
            media = media + num_computed_tokens
            positions = positions.clone()
            positions[1:, media] = positions[:1, media] + grid
        ahead = int(positions.max()) + 1 - positions.shape[1]
        return [each[:, :-COLUMNS] for each in multimodal_embeddings], positions, ahead


def _recount_on_cpu() -> None:
    """Let vLLM's runner for CPUs recount positions: unlike the one for GPUs, it never learns that the model asks for it."""
    runner: Any = sys.modules["vllm.v1.worker.cpu_model_runner"].CPUModelRunner
    name = "is_multimodal_pruning_enabled"
    if isinstance(getattr(runner, name, None), property):
        return

    def enabled(self: Any) -> bool:
        return self.__dict__.get(name, False) or getattr(getattr(self, "model", None), "foveate", None) is not None

    def remember(self: Any, value: bool) -> None:
        self.__dict__[name] = value

    setattr(runner, name, property(enabled, remember))
