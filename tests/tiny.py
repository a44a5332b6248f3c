"""Tiny random instances of the real transformers vision-language classes, and inputs laid out as their processors do.

Nothing is downloaded and no processor is built (many need torchvision): token layouts and tensors follow the source
of each family's processor. Weights are random but scaled so that every visual token moves the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor

# One id layout for all families; ordinary text ids start at TEXT, so no structural id is ever drawn as text.
PAD, BOS, EOS, IMAGE, VIDEO, START, END, BREAK, NEWLINE, FAKE, GLOBAL = range(11)
TILE, GRID, COL, ROW, SEP_X, SEP_Y, IMAGE_MARK = 11, 15, 16, 17, 18, 19, 20  # TILE..TILE+3: one id per tile
TEXT, VOCAB = 32, 320
HIDDEN, PATCH = 64, 4


@dataclass
class Family:
    cls: str
    kind: str  # how pixels are packed: see _collate
    text: dict
    vision: dict
    layout: Callable[[str, int], list[int]]  # (size, images in this prompt) -> ids of one image
    top: dict = field(default_factory=dict)
    pixels: int = 32  # side of one (square) tile
    grids: dict = field(default_factory=lambda: {"a": (1, 1), "b": (1, 1)})  # tiles, patches or pixels (rows, columns)


def _text(model_type: str, **more) -> dict:
    common = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False}
    return {"model_type": model_type, **common, **heads, **ids, **more}


def _vision(model_type: str, image: int, **more) -> dict:
    common = {"hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    return {"model_type": model_type, **common, "image_size": image, "patch_size": PATCH, **more}


def _grid_vision(model_type: str, **more) -> dict:
    common = {"depth": 4, "hidden_size": HIDDEN, "num_heads": 4, "patch_size": PATCH}
    return {"model_type": model_type, **common, "spatial_merge_size": 2, "temporal_patch_size": 2, **more}


def _mrope(section: list[int], **more) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **more}


# -- token layouts: one function per processor ------------------------------------------------------------------------

TILES = {"a": (1, 2), "b": (1, 1)}  # a: two tiles and a thumbnail, b: one tile
PER_TILE = 16
GRID_PATCHES = {"a": (10, 14), "b": (14, 8)}  # 5x7 and 7x4 merged tokens: neither is a multiple of the 4x4 window
ANYRES = {"a": (10, 40), "b": (40, 20)}  # original (height, width): a loses two padded rows, b fills its 2x1 canvas
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
PIXTRAL = {"a": (40, 48), "b": (48, 32)}


def _tile_count(size: str) -> int:
    rows, cols = TILES[size]
    return rows * cols + 1 if rows * cols > 1 else 1


def _anyres_tokens(size: str) -> int:
    """Base crop + unpadded grid + one newline per row (LlavaNextProcessor._get_number_of_features)."""
    height, width = ANYRES[size]
    rows, cols = (4, 8) if size == "a" else (8, 4)
    if width / height > cols / rows:
        rows -= (rows - int(round(height * (cols / width), 7))) // 2 * 2
    else:
        cols -= (cols - int(round(width * (rows / height), 7))) // 2 * 2
    return 16 + rows * cols + rows


def _plain(tokens: Callable[[str, int], int]) -> Callable[[str, int], list[int]]:
    return lambda size, images: [IMAGE] * tokens(size, images)


def _wrapped(tokens: Callable[[str, int], int]) -> Callable[[str, int], list[int]]:
    return lambda size, images: [START] + [IMAGE] * tokens(size, images) + [END]


def _merged(size: str, images: int) -> int:
    return math.prod(GRID_PATCHES[size]) // 4


def _gemma3(size: str, images: int) -> list[int]:
    return [NEWLINE, START] + [IMAGE] * 36 + [END, NEWLINE]


def _mistral3(size: str, images: int) -> list[int]:
    rows, cols = (side // (2 * PATCH) for side in PIXTRAL[size])
    return [*([*([IMAGE] * cols), BREAK] * rows)[:-1], END]


def _aya(size: str, images: int) -> list[int]:
    tiles = range(_tile_count(size) - 1)
    return [START] + [i for t in tiles for i in [TILE + t, *[IMAGE] * PER_TILE]] + [GLOBAL, *[IMAGE] * PER_TILE, END]


def _llama4(size: str, images: int) -> list[int]:
    rows, cols = TILES[size]
    row = [*[IMAGE] * PER_TILE, SEP_X] * cols
    grid = ([*row[:-1], SEP_Y]) * rows if rows * cols > 1 else []
    return [START, *grid, IMAGE_MARK, *[IMAGE] * PER_TILE, END]


def _ovis2(size: str, images: int) -> list[int]:
    rows, cols = TILES[size]
    row = ([*[IMAGE] * PER_TILE, COL] * cols)[:-1]
    grid = ([*row, ROW] * rows)[:-1] if rows * cols > 1 else []
    return [START, *[IMAGE] * PER_TILE, GRID, *grid, END]


def _smolvlm(size: str, images: int) -> list[int]:
    rows, cols = TILES[size]
    ids = []
    if rows * cols > 1:
        for r in range(rows):
            ids += [i for c in range(cols) for i in [FAKE, TILE + r * cols + c, *[IMAGE] * PER_TILE]] + [NEWLINE]
        ids += [NEWLINE]
    return [*ids, FAKE, GLOBAL, *[IMAGE] * PER_TILE, FAKE]


_SIGLIP = {"vision_use_head": False}
_START_END = {"vision_start_token_id": START, "vision_end_token_id": END}
_QWEN_IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO, **_START_END)
_GLM_IDS = {
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 29,
    "video_end_token_id": 30,
}
_ANYRES_TOP = {"image_token_index": IMAGE, "image_grid_pinpoints": PINPOINTS}
_IDEFICS = {
    "kind": "samples",
    "layout": _smolvlm,
    "top": {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD},
    "grids": TILES,
}
_SLIDING = ["sliding_attention", "full_attention"] * 2

_FAMILIES: dict[str, Family] = {
    "llava": Family(
        "LlavaForConditionalGeneration",
        "tiles",
        _text("llama"),
        _vision("clip_vision_model", 24),
        _plain(lambda size, images: 36),
        {"image_token_index": IMAGE},
        pixels=24,
    ),
    "llava_next": Family(
        "LlavaNextForConditionalGeneration",
        "anyres",
        _text("llama"),
        _vision("clip_vision_model", 16),
        _plain(lambda size, images: _anyres_tokens(size)),
        _ANYRES_TOP,
        pixels=16,
        grids=ANYRES,
    ),
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        "anyres",
        _text("qwen2"),
        _vision("siglip_vision_model", 16, **_SIGLIP),
        # with several images in a prompt each is one crop and one newline
        _plain(lambda size, images: _anyres_tokens(size) if images == 1 else 17),
        dict(_ANYRES_TOP, video_token_index=VIDEO, vision_aspect_ratio="anyres_max_9"),
        pixels=16,
        grids=ANYRES,
    ),
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        "patches",
        _text("qwen2_vl_text", rope_parameters=_mrope([2, 3, 3])),
        _grid_vision("qwen2_vl_vision", embed_dim=HIDDEN, mlp_ratio=2),
        _wrapped(_merged),
        _QWEN_IDS,
        grids=GRID_PATCHES,
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        "patches",
        _text("qwen2_5_vl_text", rope_parameters=_mrope([2, 3, 3])),
        _grid_vision(
            "qwen2_5_vl_vision",
            intermediate_size=96,
            out_hidden_size=HIDDEN,
            window_size=8 * PATCH,  # 4x4 merged tokens, as in the released models
            fullatt_block_indexes=[1, 3],
        ),
        _wrapped(_merged),
        _QWEN_IDS,
        grids=GRID_PATCHES,
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        "patches",
        _text("qwen3_vl_text", head_dim=16, rope_parameters=_mrope([4, 2, 2], mrope_interleaved=True)),
        _grid_vision(
            "qwen3_vl_vision",
            intermediate_size=96,
            out_hidden_size=HIDDEN,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 2],
        ),
        _wrapped(_merged),
        _QWEN_IDS,
        grids=GRID_PATCHES,
    ),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        "tiles",
        _text("qwen2"),
        _vision("internvl_vision", 32, layer_scale_init_value=1.0),
        _wrapped(lambda size, images: PER_TILE * _tile_count(size)),
        {"image_token_id": IMAGE, "image_seq_length": PER_TILE, "downsample_ratio": 0.5},
        grids=TILES,
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        "tiles",
        _text("gemma3_text", head_dim=16, query_pre_attn_scalar=16, layer_types=_SLIDING),
        _vision("siglip_vision_model", 48, **_SIGLIP),
        _gemma3,
        {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END, "mm_tokens_per_image": 36},
        pixels=48,
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration", text=_text("llama"), vision=_vision("smolvlm_vision", 32), **_IDEFICS
    ),
    "idefics3": Family(
        "Idefics3ForConditionalGeneration", text=_text("llama"), vision=_vision("idefics3_vision", 32), **_IDEFICS
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        "tiles",
        _text("gemma", head_dim=16),
        _vision("siglip_vision_model", 24, projection_dim=HIDDEN, **_SIGLIP),
        _plain(lambda size, images: 36),
        {"image_token_index": IMAGE, "projection_dim": HIDDEN, "hidden_size": HIDDEN, "vocab_size": VOCAB},
        pixels=24,
    ),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration",
        "sizes",
        _text("mistral", head_dim=16, sliding_window=None),
        _vision("pixtral", 64),
        _mistral3,
        {"image_token_index": IMAGE, "spatial_merge_size": 2},
        grids=PIXTRAL,
    ),
    "glm4v": Family(
        "Glm4vForConditionalGeneration",
        "patches",
        _text("glm4v_text", rope_parameters=_mrope([1, 1, 2], partial_rotary_factor=0.5)),
        _grid_vision("glm4v_vision", image_size=32, intermediate_size=96, out_hidden_size=HIDDEN),
        _wrapped(_merged),
        dict(image_token_id=IMAGE, video_token_id=VIDEO, **_GLM_IDS),
        grids=GRID_PATCHES,
    ),
    "aya_vision": Family(
        "AyaVisionForConditionalGeneration",
        "tiles",
        _text("cohere2", head_dim=16, layer_types=["sliding_attention"] * 3 + ["full_attention"]),
        _vision("siglip_vision_model", 32, **_SIGLIP),
        _aya,
        {"image_token_index": IMAGE, "downsample_factor": 2},
        grids=TILES,
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        "tiles",
        _text(
            "llama4_text",
            head_dim=16,
            intermediate_size_mlp=96,
            num_local_experts=4,
            interleave_moe_layer_step=2,  # layers 1 and 3 are experts; layer 3 is also the full-attention, no-RoPE one
        ),
        _vision(
            "llama4_vision_model",
            32,
            vision_output_dim=HIDDEN,
            projector_input_dim=HIDDEN,
            projector_output_dim=HIDDEN,
            intermediate_size=4 * HIDDEN,  # the pixel-shuffle MLP takes its input width from here
        ),
        _llama4,
        {"image_token_index": IMAGE, "boi_token_index": START, "eoi_token_index": END},
        grids=TILES,
    ),
    "ovis2": Family(
        "Ovis2ForConditionalGeneration",
        "tiles",
        _text("qwen2"),
        _vision("ovis2_vision", 32, hidden_stride=2, vocab_size=96, num_visual_indicator_tokens=5),
        _ovis2,
        {
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [START, GRID, COL, ROW, END],
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
        },
        grids=TILES,
    ),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)

# Families whose text model has layers that see only a window (key: name of the setting).
WINDOWED = {"gemma3": "sliding_window", "aya_vision": "sliding_window", "llama4": "attention_chunk_size"}


# -- models -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _randomise(model, seed: int) -> None:
    """Redraw all weights but the norms with unit-gain scale: the library's 0.02 would hide most of the model."""
    gen = torch.Generator().manual_seed(seed)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if getattr(own.get("weight"), "ndim", 0) == 1:  # a norm
            continue
        for name, p in own.items():
            if name.startswith("lambda"):  # InternVL layer scale, set by the config
                continue
            if isinstance(module, torch.nn.Embedding):
                std = 1.0
            elif p.ndim == 1:
                std = 0.05 if name == "bias" else 1.0  # else: class or newline embedding
            else:
                std = (p.shape[-2] if p.ndim == 3 else p[0].numel()) ** -0.5  # 3: experts, [expert, in, out]
            p.normal_(0.0, std, generator=gen)
    head = model.get_output_embeddings().weight
    head.mul_(2.0)
    head[:TEXT] = 0.0  # logit 0: no greedy or beam search ever picks a special id (eos, image) by accident


def build(name: str, seed: int = 0, attn: str = "sdpa", *, window: int = 512):
    """The ...ForConditionalGeneration model, float32, eval mode; `window` is used by the families in WINDOWED."""
    family = _FAMILIES[name]
    cls = getattr(transformers, family.cls)
    text = {**family.text, **({WINDOWED[name]: window} if name in WINDOWED else {})}
    config = cls.config_class(
        text_config=text, vision_config=dict(family.vision), tie_word_embeddings=False, **family.top
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(config, attn_implementation=attn, dtype=torch.float32).eval()
    _randomise(model, seed)
    model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
    return model


def image_token_id(name: str, model) -> int:
    return model.config.image_token_id


def image_counts(name: str, model, size: str, images: int = 1) -> int:
    """Placeholders of one image of that size; `images`: how many the prompt has (matters to llava_onevision only)."""
    return _FAMILIES[name].layout(size, images).count(IMAGE)


# -- inputs -----------------------------------------------------------------------------------------------------------


def _pixels(family: Family, size: str, images: int, gen: torch.Generator) -> Tensor:
    """One image: [tiles, 3, S, S], flat patches [h*w, 3*2*p*p] or a whole picture [3, H, W]."""
    if family.kind == "patches":
        patch = torch.randn(math.prod(family.grids[size]), 3, 1, PATCH, PATCH, generator=gen)
        return patch.expand(-1, -1, 2, -1, -1).reshape(len(patch), -1)  # a still image is one frame, twice
    if family.kind == "sizes":
        return torch.randn(3, *family.grids[size], generator=gen)
    if family.kind == "anyres":  # base crop first; llava_onevision does not split when a prompt has several images
        tiles = 1 if images > 1 and family.cls.startswith("LlavaOnevision") else 3
    else:
        tiles = _tile_count(size) if family.grids is TILES else 1
    return torch.randn(tiles, 3, family.pixels, family.pixels, generator=gen)


def _collate(family: Family, images: list[list[tuple[str, Tensor]]]) -> dict[str, Tensor]:
    flat = [image for prompt in images for image in prompt]
    if not flat:
        return {}
    pixels, sizes = [p for _, p in flat], torch.tensor([family.grids[s] for s, _ in flat])
    if family.kind == "patches":
        return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.nn.functional.pad(sizes, (1, 0), value=1)}
    if family.kind == "sizes":
        high, wide = sizes.amax(0).tolist()
        padded = [torch.nn.functional.pad(p, (0, wide - p.shape[2], 0, high - p.shape[1])) for p in pixels]
        return {"pixel_values": torch.stack(padded), "image_sizes": sizes}
    if family.kind == "anyres":
        out = {"pixel_values": torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True), "image_sizes": sizes}
        if family.cls.startswith("LlavaOnevision"):
            out["batch_num_images"] = torch.tensor([len(prompt) for prompt in images])
        return out
    if family.kind == "samples":  # one row per prompt: all tiles of all its images, then all-zero padding tiles
        none = torch.zeros(0, 3, family.pixels, family.pixels)
        rows = [torch.cat([none, *[p for _, p in prompt]]) for prompt in images]
        masks = [torch.ones(len(row), family.pixels, family.pixels, dtype=torch.long) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {"pixel_values": pad(rows, batch_first=True), "pixel_attention_mask": pad(masks, batch_first=True)}
    return {"pixel_values": torch.cat(pixels)}


def inputs(
    name: str, model, prompts: list[list], seed: int = 0, padding: str = "left", first: int = 0
) -> dict[str, Tensor]:
    """What the family's processor returns for `prompts`, each a list of text lengths and ("image", "a" | "b").

    Prompt i is drawn from (seed, first + i) alone: `inputs(name, model, [prompts[i]], seed, first=i)` is row i without
    its padding. Two deviations: every prompt begins with bos (PaliGemma's would begin with its images), and PaliGemma's
    `labels` are left out, as they only matter in training.
    """
    family, rows, images = _FAMILIES[name], [], []
    for i, prompt in enumerate(prompts):
        gen = torch.Generator().manual_seed(seed * 7919 + first + i)
        count = sum(not isinstance(segment, int) for segment in prompt)
        ids, found = [BOS], []
        for segment in prompt:
            if isinstance(segment, int):
                ids += torch.randint(TEXT, VOCAB, (segment,), generator=gen).tolist()
                continue
            ids += family.layout(segment[1], count)
            found.append((segment[1], _pixels(family, segment[1], count, gen)))
            if name == "paligemma" and len(found) == count:
                ids.append(BOS)  # the processor puts bos between the last image and the text
        rows.append([*ids, NEWLINE] if name == "paligemma" else ids)
        images.append(found)
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    left = padding == "left"
    ids = torch.tensor([f + row if left else row + f for f, row in zip(fill, rows, strict=True)])
    mask = torch.tensor(
        [[0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f) for f, r in zip(fill, rows, strict=True)]
    )
    out = {"input_ids": ids, "attention_mask": mask, **_collate(family, images)}
    if family.kind == "patches":
        out["mm_token_type_ids"] = (ids == IMAGE).long()
    elif name == "gemma3":
        out["token_type_ids"] = (ids == IMAGE).long()
    elif name == "paligemma":
        out["token_type_ids"] = torch.zeros_like(ids)  # all prefix: read in both directions
    return out
