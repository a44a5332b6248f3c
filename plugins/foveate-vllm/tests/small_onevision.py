"""A tiny LLaVA-OneVision with random weights, its processor and pictures, in a folder for vLLM."""

import torch

from foveate_vllm.checkpoint import convert
from small_qwen import noise, tokenizer_of
from tiny import _randomise  # unit-gain weights, with which every visual token moves the logits

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
TILE, SIDE = 96, 6  # pixels and tokens of a tile's side
GRIDS = [[96, 96], [96, 192], [192, 96], [192, 192], [96, 288], [288, 96], [384, 384]]
SIZES = {  # width, height
    "landscape": (189, 70),  # 1 x 2 tiles, two rows of them are padding
    "portrait": (56, 273),  # 3 x 1 tiles, two columns of them are padding
    "square": (147, 140),  # 2 x 2 tiles
    "large": (364, 322),  # 4 x 4 tiles, scaled down after the connector
}
BEGINS = 24  # so that the first block of a cache, 32 tokens, ends inside a picture


def build(folder):
    """Write the model and its processor; returns the folder for vLLM, the model and the processor."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer, ids = tokenizer_of(SPECIAL)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=TILE,
            patch_size=TILE // SIDE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=320,
            hidden_size=128,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            pad_token_id=ids["<pad>"],
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
        ),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=GRIDS,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaOnevisionForConditionalGeneration(config).eval()
    _randomise(model, 0)
    size = {"height": TILE, "width": TILE}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=GRIDS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
    )
    model.save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")
    return convert(folder / "saved", folder / "served"), model, processor


def picture(kind, seed):
    """A picture of noise in blocks, so that neighbouring tokens differ."""
    return noise(SIZES[kind], seed)


def text(kinds):
    """A prompt with a picture of each kind, words before, between and after; the first begins at token BEGINS."""
    shown = " ".join(f"w{30 + i} <image> w{40 + i}" for i in range(len(kinds)))
    before = " ".join(f"w{i}" for i in range(BEGINS - 2))
    return f"<s> {before} {shown} w3 w4 w5"
