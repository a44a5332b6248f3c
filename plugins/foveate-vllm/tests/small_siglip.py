"""A tiny LLaVA with a SigLIP tower, random weights and the testbed's words, in a folder for vLLM."""

import torch

from foveate import testbed
from foveate_vllm.checkpoint import convert
from tiny import _randomise  # unit-gain weights, with which every visual token moves the logits


def build(folder):
    """Write the model and its processor; returns the folder for vLLM, the model and the processor."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, SiglipVisionConfig

    _, known = testbed.load()
    ids = known.tokenizer.convert_tokens_to_ids([known.image_token, "<pad>", "<s>", "</s>"])
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=192,
            patch_size=16,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(known.tokenizer),
            hidden_size=128,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=ids[1],
            bos_token_id=ids[2],
            eos_token_id=ids[3],
        ),
        image_token_index=ids[0],
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        image_seq_length=144,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    _randomise(model, 0)
    processor = LlavaProcessor(
        image_processor=known.image_processor,
        tokenizer=known.tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=known.chat_template,
        image_token=known.image_token,
    )
    model.save_pretrained(folder / "saved")
    processor.save_pretrained(folder / "saved")
    return convert(folder / "saved", folder / "served"), model, processor
