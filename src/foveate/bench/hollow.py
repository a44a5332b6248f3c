"""Models of real sizes without their weights: what is multiplied is known, and nothing has to fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError


class Hollow(nn.Module):
    """Stands in for a linear layer and has no weights: every output is one of the inputs, or its negative."""

    def __init__(self, in_features: int, out_features: int, seed: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        gen = torch.Generator().manual_seed(seed)
        self.source = torch.randint(in_features, (out_features,), generator=gen)
        self.sign = torch.randint(2, (out_features,), generator=gen).float() * 2 - 1
        self.weight = self.bias = torch.zeros(1, 1)  # some models ask for its dtype, and draw it by name

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.source] * self.sign.to(x.dtype)


class HollowTable(nn.Module):
    """Stands in for an embedding: its rows are windows, one step apart, of one row of random numbers."""

    def __init__(self, rows: int, width: int, seed: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.seed = rows, width, seed
        self.weight = torch.zeros(1, 1)

    def draw(self) -> None:
        """Make the rows, once the model's own way of drawing weights is through."""
        shape = self.num_embeddings, self.embedding_dim
        self.weight = torch.randn(sum(shape), generator=torch.Generator().manual_seed(self.seed)).as_strided(
            shape, (1, 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


def hollow(config: Any) -> nn.Module:
    """A stock model of any size whose linear layers and embeddings have no weights.

    It does everything but their products, on features of the true sizes, so that it can be counted on a small machine.
    What it says is noise: methods whose counts depend on the picture keep what they would of noise.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    for seed, path in enumerate([path for path, _ in model.named_modules() if path]):
        parent, _, name = path.rpartition(".")
        module, child = model.get_submodule(parent), model.get_submodule(path)
        if isinstance(child, nn.Linear):
            setattr(module, name, Hollow(child.in_features, child.out_features, seed))
        elif isinstance(child, nn.Embedding):
            setattr(module, name, HollowTable(child.num_embeddings, child.embedding_dim, seed))
    model.to_empty(device="cpu")
    for each in [*model.modules(), *model.parameters(), *model.buffers()]:
        each.__dict__.pop("_is_hf_initialized", None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for one in [*model.parameters(), *model.buffers()]:
            one.zero_()  # what the model has no way of drawing
        torch.manual_seed(0)
        model.initialize_weights()
    for module in model.modules():
        if isinstance(module, HollowTable):
            module.draw()
    return model.eval()


def _llava(width: int, mlp: int, depth: int, heads: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth, num_attention_heads=heads, vocab_size=32064,
        max_position_embeddings=32768, pad_token_id=0,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576)


def _qwen() -> Any:
    from transformers import Qwen2_5_VLConfig

    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


SHAPES: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": lambda: _llava(4096, 11008, 32, 32),
    "llava-1.5-13b": lambda: _llava(5120, 13824, 40, 40),
    "qwen2.5-vl-7b": _qwen,
}
SIDE = 24  # tokens along a picture


def shape(name: str, images: int = 1, text: int = 64) -> tuple[nn.Module, dict[str, Any]]:
    """A hollow model of a published size, and a prompt of noise pictures with 576 tokens each.

    Args:
        name: one of :data:`SHAPES`.
        images: pictures of the prompt.
        text: its text tokens, one of them before the pictures.

    Raises:
        UnsupportedError: if there is no such shape.
    """
    if name not in SHAPES:
        raise UnsupportedError(f"no shape {name!r}", hint=", ".join(SHAPES))
    model: Any = hollow(SHAPES[name]())
    config, gen = model.config, torch.Generator().manual_seed(0)
    words = torch.randint(100, 30000, (text - 1,), generator=gen).tolist()
    pictures = [config.image_token_id] * SIDE**2
    inputs: dict[str, Any] = {}
    if hasattr(config, "vision_start_token_id"):
        pictures = [config.vision_start_token_id, *pictures, config.vision_end_token_id]
        side = SIDE * config.vision_config.spatial_merge_size
        width = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
        inputs["pixel_values"] = torch.randn(images * side**2, width, generator=gen)
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * images)
    else:
        side = config.vision_config.image_size
        inputs["pixel_values"] = torch.randn(images, 3, side, side, generator=gen)
    ids = torch.tensor([[1, *pictures * images, *words]])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).long()
    return model, inputs
