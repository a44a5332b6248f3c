"""Models of published sizes: that they have these sizes, are made as asked for, and that prompts fit them."""

from __future__ import annotations

import pytest
import torch

from foveate.bench.runner import _encode, prefill
from foveate.bench.times.shapes import build, config_of, prompts_by, prompts_of, tokens_of
from foveate.errors import UnsupportedError


@pytest.mark.parametrize(
    ("name", "parameters"), [("llava-1.5-7b", 7_063_427_072), ("qwen2.5-vl-7b", 8_292_166_656)]
)  # of llava-hf/llava-1.5-7b-hf and Qwen/Qwen2.5-VL-7B-Instruct
def test_shapes_have_the_published_size(name, parameters):
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_divided_shape_is_what_it_says():
    config = config_of("llava-1.5-7b/8")
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads) == (512, 4, 4)
    assert (text.intermediate_size, text.num_hidden_layers, text.vocab_size) == (1376, 8, 32064)
    assert (vision.hidden_size, vision.num_attention_heads, vision.intermediate_size) == (128, 2, 512)
    assert (vision.num_hidden_layers, vision.image_size, config.image_seq_length) == (6, 336, 576)
    config = config_of("qwen2.5-vl-7b/8")
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads) == (512, 4, 1), "28 heads over 8: 4"
    assert (text.num_hidden_layers, len(text.layer_types)) == (7, 7)
    assert (vision.hidden_size, vision.num_heads, vision.depth, vision.out_hidden_size) == (160, 2, 8, 512)
    assert vision.fullatt_block_indexes == [1, 3, 5, 7]


@pytest.mark.parametrize("name", ["llava", "llava-1.5-7b/0", "llava-1.5-7b/x", "llava-1.5-7b/64", "llava-1.5-7b/"])
def test_other_names_are_refused(name):
    with pytest.raises(UnsupportedError, match="no shape"):
        config_of(name)


@pytest.mark.parametrize(("name", "per_picture"), [("llava-1.5-7b/32", 576), ("qwen2.5-vl-7b/32", 1369)])
def test_a_shape_runs_on_prompts_made_by_hand(name, per_picture):
    model = build(name)
    assert not model.training and all(torch.isfinite(x).all() for x in [*model.parameters(), *model.buffers()])
    fed = prompts_of(model, 40)(2, 1, 1.0)
    assert tokens_of(model, fed) == (per_picture, 40) and fed["input_ids"].shape == (2, per_picture + 40)
    assert not torch.equal(fed["pixel_values"][0], fed["pixel_values"][-1]), "every picture is another one"
    features = _encode(model, fed)
    assert sum(len(rows) for rows in features["pooler_output"]) == 2 * per_picture
    assert torch.isfinite(prefill(model, fed, features).logits).all()


def test_pictures_are_counted_and_shrink_where_the_tower_takes_any_size():
    fixed, free = (prompts_of(build(f"{name}/32"), 40) for name in ("llava-1.5-7b", "qwen2.5-vl-7b"))
    assert fixed(1, 2, 1.0)["input_ids"].shape == fixed(1, 2, 0.5)["input_ids"].shape == (1, 2 * 576 + 40)
    fed = free(1, 2, 0.25)
    assert fed["input_ids"].shape == (1, 2 * 81 + 40) and fed["image_grid_thw"].tolist() == [[1, 18, 18]] * 2
    assert int(fed["mm_token_type_ids"].sum()) == 2 * 81 and len(fed["pixel_values"]) == 2 * 18**2


def test_weights_are_made_in_their_dtype_and_by_the_seed(monkeypatch):
    seen = set()
    draw = torch.Tensor.normal_
    monkeypatch.setattr(torch.Tensor, "normal_", lambda x, *a, **k: (seen.add(x.dtype), draw(x, *a, **k))[1])
    state = torch.random.get_rng_state()
    one, again, other = (build("llava-1.5-7b/32", "bfloat16", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers go on as before"
    assert {p.dtype for p in one.parameters()} == {torch.bfloat16}
    assert seen == {torch.bfloat16}, "no copy of the weights in another dtype"
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True)]
    head = [model.get_output_embeddings().weight for model in (one, other)]
    assert all(same) and not torch.equal(*head)


@pytest.fixture(scope="module")
def loaded():
    """A small random model that fits the processor of the testbed."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from foveate.testbed.text import TOKEN_ID, VOCABULARY, build_processor

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=192, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(VOCABULARY)
    )
    image = TOKEN_ID["<image>"]
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=576)
    return LlavaForConditionalGeneration(config).eval(), build_processor()


def test_prompts_by_a_processor_have_the_text_that_was_asked_for(loaded):
    model, processor = loaded
    fed = prompts_by(model, processor, 64)(2, 3, 1.0)
    assert tokens_of(model, fed) == (3 * 576, 64)
    assert fed["input_ids"].shape == (2, 3 * 576 + 64) and fed["attention_mask"].all()
    assert len(fed["pixel_values"]) == 6 and not torch.equal(fed["pixel_values"][0], fed["pixel_values"][1])
    assert torch.isfinite(prefill(model, fed).logits).all()
    assert 1 < tokens_of(model, prompts_by(model, processor, 2)(1, 1, 1.0))[1] < 10, "no less than the format has"


def test_prompts_by_a_processor_without_chat_format(loaded):
    model, processor = loaded
    template, processor.chat_template = processor.chat_template, None
    try:
        assert tokens_of(model, prompts_by(model, processor, 20)(1, 2, 1.0)) == (2 * 576, 20)
    finally:
        processor.chat_template = template
