"""What Foveate's adapters of LLaVA models have in common around vLLM's models."""

from __future__ import annotations

from typing import Any

from foveate.families import Family


class ShortTower(Family):
    """vLLM builds the tower of a LLaVA only up to the block whose output is used, and calls its attention by itself."""

    def __init__(self, model: Any) -> None:
        self.model, self.core, self.config = model, model, model.config

    def last_block(self) -> int:
        count, layer = int(self.config.vision_config.num_hidden_layers), self.config.vision_feature_layer
        return max(count + i if i < 0 else i - 1 for i in ([layer] if isinstance(layer, int) else layer))

    def attention(self, layer: int) -> Any:
        return super().attention(layer).attn
