"""Models of published sizes with random weights, and prompts for them and for loaded models: what the time bench runs.

How long a model takes does not depend on what its weights are, so no weights are downloaded. They are made on the device,
in the dtype asked for, from the stock configuration classes. Answers are noise, and so is what methods keep whose count
depends on the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...errors import UnsupportedError
from ..hollow import SHAPES
from ..runner import prepared

QWEN_SIDE = 37  # tokens along a picture of 1036 x 1036 px, with patches of 14 px joined two by two
SIDE = 1036  # pixels of a picture that a processor is handed
Prompts = Callable[[int, int, float], dict[str, Any]]
"""(prompts of the batch, pictures of each, share of their usual side) -> a batch for the model, on its device."""


def config_of(name: str) -> Any:
    """The configuration of a published size, or of a smaller model of the same build.

    ``llava-1.5-7b`` is LLaVA-1.5-7B: CLIP ViT-L/14 at 336 px, 576 tokens per picture. ``qwen2.5-vl-7b`` is Qwen2.5-VL-7B,
    here with pictures of 1036 x 1036 px, 1369 tokens.

    ``NAME/N`` divides attention heads and MLP width by N, in the language model and in the tower. The size of a head
    stays, so the width is divided by N, too (rounded up to whole heads: Qwen's 28 heads over 8 are 4). Key heads are
    divided by N, at least one. Layers of both are divided by N/2, rounded up, at least two; full-attention blocks of the
    tower keep their share. Pictures, number of visual tokens and vocabulary stay, so the head weighs more than it does
    in the real model, mostly in decoding steps.

    Raises:
        UnsupportedError: if there is no such shape.
    """
    base, slash, by = name.partition("/")
    if base not in SHAPES or (slash and not (by.isdecimal() and 1 <= int(by) <= 32)):
        raise UnsupportedError(
            f"no shape {name!r}", hint=f"{', '.join(SHAPES)}; {next(iter(SHAPES))}/8 for a smaller one, at most /32"
        )
    config = SHAPES[base]()
    if slash:
        _divide(config, int(by))
    return config


def _divide(config: Any, by: int) -> None:
    """See :func:`config_of`."""
    text, vision, less = config.get_text_config(), config.vision_config, math.ceil(by / 2)
    for part, heads in (
        (text, "num_attention_heads"),
        (vision, "num_heads" if hasattr(vision, "depth") else "num_attention_heads"),
    ):
        size, count = part.hidden_size // getattr(part, heads), math.ceil(getattr(part, heads) / by)
        setattr(part, heads, count)
        part.hidden_size, part.intermediate_size = size * count, max(1, round(part.intermediate_size / by))
        layers = "depth" if hasattr(part, "depth") else "num_hidden_layers"
        setattr(part, layers, max(2, math.ceil(getattr(part, layers) / less)))
    most = max(1, text.num_key_value_heads // by)
    text.num_key_value_heads = next(k for k in range(most, 0, -1) if text.num_attention_heads % k == 0)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    if hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = text.hidden_size
    if hasattr(vision, "fullatt_block_indexes"):
        ends = {(i + 1) // less - 1 for i in vision.fullatt_block_indexes}
        vision.fullatt_block_indexes = sorted(i for i in ends if 0 <= i < vision.depth)


def build(name: str, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> Any:
    """A stock model of a shape with random weights, made where and as it will run.

    Args:
        name: see :func:`config_of`.
        dtype: "float32", "bfloat16" or "float16".
        device: a torch device.
        seed: of the weights; those of another device or dtype are others.

    Returns:
        The model, in eval mode. ``generate`` pads with 0.

    Raises:
        UnsupportedError: if there is no such shape.
    """
    from transformers import AutoModelForImageTextToText

    config, where = config_of(name), torch.device(device)
    seeded = []
    if where.type == "cuda":
        seeded = [torch.cuda.current_device() if where.index is None else where.index]
    with torch.random.fork_rng(devices=seeded), where:
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.generation_config.pad_token_id = 0
    return model.eval()


def prompts_of(model: Any, text: int) -> Prompts:
    """Prompts of noise pictures and random words for a model of :func:`build`, made by hand as its processor lays them out.

    Args:
        model: with a tower of one size, or of Qwen's kind.
        text: text tokens of a prompt, those around its pictures included; at least one follows the pictures.
    """
    config = model.config
    grids = hasattr(config, "vision_start_token_id")  # Qwen: pictures of any size, cut into patches beforehand

    def made(batch: int, images: int, share: float) -> dict[str, Any]:
        gen, count = torch.Generator().manual_seed(images), batch * images
        more: dict[str, Any] = {}
        if grids:
            vision, side = config.vision_config, max(1, round(QWEN_SIDE * share))
            patches = side * vision.spatial_merge_size
            size = 3 * vision.temporal_patch_size * vision.patch_size**2
            more["image_grid_thw"] = torch.tensor([[1, patches, patches]] * count)
            pixels = torch.randn(count * patches**2, size, generator=gen)
            picture = [config.vision_start_token_id, *[config.image_token_id] * side**2, config.vision_end_token_id]
        else:
            side = config.vision_config.image_size
            pixels = torch.randn(count, 3, side, side, generator=gen)
            picture = [config.image_token_id] * config.image_seq_length
        words = max(1, text - 1 - 2 * grids * images)
        after = torch.randint(100, 30000, (batch, words), generator=gen)
        ids = torch.cat([torch.tensor([[1, *picture * images]]).expand(batch, -1), after], 1)
        more |= {"mm_token_type_ids": (ids == config.image_token_id).long()} if grids else {}
        return prepared(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **more}
        )

    return made


def prompts_by(model: Any, processor: Any, text: int) -> Prompts:
    """Prompts for a loaded model: pictures of the testbed, enlarged to 1036 x 1036 px, and a long question.

    Args:
        model, processor: as loaded by transformers.
        text: text tokens of a prompt, chat format included. The question gets as many words as fit; a format that has
            more to begin with keeps them.
    """
    from ... import testbed

    # Two questions in a row are about the same picture.
    pictures = [sample.images[0] for sample in testbed.samples(["reading-dense"], limit=128)[::2]]

    def made(batch: int, images: int, share: float, words: int = 1) -> dict[str, Any]:
        side = max(28, round(SIDE * share))
        shown = [pictures[i % len(pictures)].resize((side, side)) for i in range(batch * images)]
        content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": " ".join(["what"] * words)}]
        if getattr(processor, "chat_template", None):
            said = [{"role": "user", "content": content}]
            line = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        else:
            line = getattr(processor, "image_token", "<image>") * images + content[-1]["text"]
        each = [shown[i * images : (i + 1) * images] for i in range(batch)]
        return prepared(model, processor(images=each, text=[line] * batch, return_tensors="pt"))

    def filled(batch: int, images: int, share: float) -> dict[str, Any]:
        has, more = (tokens_of(model, made(1, images, share, words))[1] for words in (1, 2))
        return made(batch, images, share, 1 + max(0, text - has) // (more - has))

    return filled


def tokens_of(model: Any, fed: dict[str, Any]) -> tuple[int, int]:
    """Visual and text tokens of a prompt of a batch of equal ones."""
    from ...families import adapt

    visual = int(adapt(model).placeholders(fed["input_ids"], fed)[0].sum())
    return visual, int(fed["attention_mask"][0].sum()) - visual
