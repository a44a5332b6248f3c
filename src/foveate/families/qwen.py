"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V: pictures of any size, 2 x 2 patches per token, three-dimensional positions.

The processor cuts a picture into patches and lists them block by block (four patches of a token together), so that
output token i joins tower rows 4i to 4i + 3. Positions are made by the model's own function, also as a side effect
that later steps rely on.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Family
from .layout import Layout
from .sized import resized


class QwenVL(Family):
    """Qwen2-VL and Qwen3-VL."""

    name = "qwen_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
    has_cls = False
    resizable = True
    note = "any picture size; M-RoPE positions and deep-stack features follow the kept tokens"

    @property
    def merge(self) -> int:
        """Patches per side of a token."""
        return int(self.config.vision_config.spatial_merge_size)

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        found = []
        for t, h, w in arguments["image_grid_thw"].tolist():
            height, width, block = h // self.merge, w // self.merge, self.merge**2
            source = torch.arange(t * height * width * block).view(-1, block)
            found.append(Layout.grid(t * height, width, source))
        return found

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        return self.full_layouts(arguments)

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        return self.full_layouts(arguments)

    def pixels(self, given: Tensor, layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        return list(given.float().split([one.patches for one in layouts]))  # patches already, and in this order

    def positions(self, kwargs: dict[str, Any], past: int) -> Tensor:
        compute = self.core.compute_3d_position_ids
        given = {**kwargs, "inputs_embeds": kwargs["input_ids"][..., None].float()}
        names = inspect.signature(compute).parameters
        found = compute(**{name: given.get(name) for name in names})
        if found is None:
            return super().positions(kwargs, past)
        length = kwargs["input_ids"].shape[1]
        return found[..., -length:]  # on a cache it counts along the mask, earlier columns included

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        vision, merge = self.config.vision_config, self.merge
        patch, frames = vision.patch_size, vision.temporal_patch_size
        grids = arguments["image_grid_thw"].tolist()
        pieces = arguments["pixel_values"].split([t * h * w for t, h, w in grids])
        rows, new = [], []
        for piece, (t, h, w), (height, width) in zip(pieces, grids, sizes, strict=True):
            blocks = piece.view(t, h // merge, w // merge, merge, merge, -1, frames, patch, patch)
            picture = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, -1, h * patch, w * patch)
            h, w = height * merge, width * merge
            small = resized(picture, h * patch, w * patch)
            blocks = small.view(t, frames, -1, height, merge, patch, width, merge, patch)
            rows.append(blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1))
            new.append([t, h, w])
        grid = torch.tensor(new, device=arguments["image_grid_thw"].device, dtype=arguments["image_grid_thw"].dtype)
        return {**arguments, "pixel_values": torch.cat(rows), "image_grid_thw": grid}


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: most blocks attend inside windows only, and the tower's tokens are listed window by window."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    note = "scores come from the last block that sees the whole picture"

    def score_layer(self) -> int:
        return int(max(self.config.vision_config.fullatt_block_indexes))

    def in_windows(self, layer: int) -> bool:
        return layer not in self.config.vision_config.fullatt_block_indexes

    def per_unit(self, values: list[Tensor], layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        from transformers.vision_utils import get_vision_window_index

        vision, block = self.config.vision_config, self.merge**2
        order, _ = get_vision_window_index(
            arguments["image_grid_thw"],
            spatial_merge_size=self.merge,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        flat = torch.cat([v.flatten(0, 1) for v in values])
        groups = flat.view(-1, block, *flat.shape[1:])[order.to(flat.device).argsort()]
        return super().per_unit([groups.flatten(0, 1)[None]], layouts, arguments)


class Glm4v(QwenVL):
    """GLM-4V: as Qwen2-VL, but placeholders of a video bear the image's id."""

    name = "glm4v"
    model_types = ("glm4v", "glm4v_moe")
    note = "as Qwen2-VL"

    def placeholders(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        found = super().placeholders(ids, kwargs)
        types = kwargs.get("mm_token_type_ids")
        return found if types is None else found & (types[:, -ids.shape[1] :] == 1)

    def blocks(self) -> nn.ModuleList:
        return self.core.visual.blocks
