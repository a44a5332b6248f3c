"""A tiny Qwen2.5-VL with random weights, its processor and pictures, in a folder."""

import torch
from PIL import Image

from tiny import _randomise  # unit-gain weights, with which every visual token moves the logits

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = [f"w{i}" for i in range(300)]
SIZES = {"landscape": (252, 168), "portrait": (168, 252), "square": (140, 140)}  # width, height: 9x6, 6x9, 5x5 tokens
BEGINS = 25  # so that the first block of a cache, 32 tokens, ends inside a picture


def tokenizer_of(special):
    """Words in blanks, after special tokens; returns the tokenizer and ids by word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return tokenizer, ids


def build(folder):
    """Write the model and its processor; returns both."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, ids = tokenizer_of(SPECIAL)
    text = {
        "vocab_size": 320,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": False,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 96,
        "out_hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    _randomise(model, 0)
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    sizes |= {"size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 80}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def picture(kind, seed):
    """A picture of noise in blocks, so that neighbouring tokens differ."""
    return noise(SIZES[kind], seed)


def noise(size, seed):
    """A picture of that width and height, in blocks of 7 by 7 pixels."""
    width, height = size
    gen = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (height // 7, width // 7, 3), generator=gen, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.NEAREST)


def text(kinds):
    """A prompt with a picture of each kind, words before, between and after; the first begins at token BEGINS."""
    shown = " ".join(f"w{30 + i} <|vision_start|> <|image_pad|> <|vision_end|> w{40 + i}" for i in range(len(kinds)))
    before = " ".join(f"w{i}" for i in range(BEGINS - 3))
    return f"<s> {before} {shown} w3 w4 w5"
