"""Qwen2.5-VL: tokens, answers and their probabilities as in transformers, whatever the shape of pictures and caches."""

import pytest
import torch
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

from conftest import greedy, in_transformers, running
from small_qwen import BEGINS, build, picture, text

PROMPTS = [
    ["landscape"],
    ["portrait"],
    ["portrait", "landscape"],
    ["landscape", "portrait"],
    ["square", "square"],
]
CASES = [
    ("divprune:keep=1.0", None),
    ("divprune:keep=0.25", None),
    ("divprune:keep=0.25", "contiguous"),
    ("fastervlm:keep=0.4", None),  # attention of the last block that sees the whole picture
    ("visionzip:keep=12", None),  # and its keys; merges
]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Folder, model, and of each prompt what vLLM and what transformers gets. The first picture is always the same."""
    folder = tmp_path_factory.mktemp("qwen")
    model, processor = build(folder)
    asked = []
    for kinds in PROMPTS:
        pictures = [picture(kind, seed) for seed, kind in enumerate(kinds)]
        said = text(kinds)
        inputs = processor(text=[said], images=pictures, return_tensors="pt")
        asked.append(({"prompt": said, "multi_modal_data": {"image": pictures}}, dict(inputs)))
    return folder, model, asked


def same(mine, theirs):
    assert mine[:2] == theirs[:2]
    assert mine[2] == pytest.approx(theirs[2], abs=1e-3)


@pytest.mark.parametrize(("plan", "positions"), CASES)
def test_the_same_tokens_stay_and_the_answers_are_the_same(qwen, plan, positions):
    folder, model, asked = qwen
    overrides = {"foveate_positions": positions} if positions else {}
    with running(folder, plan, overrides) as (llm, kept):
        found = []
        for prompt, _ in asked:
            kept.clear()
            found.append((greedy(llm, [prompt])[0], [list(each) for each in kept]))
    for (_, inputs), (mine, tokens) in zip(asked, found, strict=True):
        theirs = in_transformers(model, inputs, plan, positions or "original")
        # A picture that an earlier prompt had may still be held, and is not encoded again.
        assert tokens == theirs[3][len(theirs[3]) - len(tokens) :]
        same(mine, theirs)


def test_places_matter_to_this_model(qwen):
    """Otherwise the tests of places could not fail."""
    _, model, asked = qwen
    for _, inputs in asked:
        one, other = (in_transformers(model, inputs, "divprune:keep=0.25", p)[2] for p in ("original", "contiguous"))
        assert abs(one - other) > 0.01  # ten times what is let pass


@pytest.mark.parametrize(("keep", "tokens", "found"), [("1.0", 54, 64), ("0.25", 14, 32)])
def test_cached_prefixes_that_end_inside_a_picture(qwen, keep, tokens, found):
    """The first picture of two is found in part, and the second is in the same step."""
    folder, model, asked = qwen
    plan = f"divprune:keep={keep}"
    assert BEGINS < found < BEGINS + tokens
    with running(folder, plan, enable_prefix_caching=True, block_size=32) as (llm, _):
        first = greedy(llm, [prompt for prompt, _ in asked])
        assert [each[3] for each in first] == [0, 0, found, found, 0]
        for answers in (first, greedy(llm, [prompt for prompt, _ in asked])):
            for (_, inputs), mine in zip(asked, answers, strict=True):
                same(mine, in_transformers(model, inputs, plan, "original"))


@pytest.mark.parametrize(("keep", "tokens", "step"), [("1.0", 54, 96), ("0.25", 14, 48)])
def test_steps_that_end_inside_a_picture(qwen, keep, tokens, step):
    folder, model, asked = qwen
    plan = f"divprune:keep={keep}"
    second = BEGINS + tokens + 4
    assert second < step < second + tokens
    with running(folder, plan, enable_chunked_prefill=True, max_num_batched_tokens=step) as (llm, _):
        prompts = [prompt for prompt, _ in asked]
        for answers in (greedy(llm, prompts), greedy(llm, prompts, together=True)):
            for (_, inputs), mine in zip(asked, answers, strict=True):
                same(mine, in_transformers(model, inputs, plan, "original"))


def test_prompts_are_shorter_for_profiling_too(qwen):
    folder, _, asked = qwen
    with running(folder, "divprune:keep=0.25") as (llm, _):
        config = llm.config
        processor = MULTIMODAL_REGISTRY.create_processor(config)
        most = get_mm_max_toks_per_item(processor, {"image": 1}, None)
        assert most == {"image": 20}  # of 80
        dummy = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
        assert [each.length for each in dummy] == [20]
        assert greedy(llm, asked[0][0:1], 1)[0][0] == asked[0][1]["input_ids"].shape[1] - 54 + 14
        with pytest.raises(ValueError, match=r"(?i)video"):
            greedy(llm, [{"prompt": "<s> <|video_pad|>", "multi_modal_data": {"video": [torch.zeros(4, 56, 56, 3)]}}])
        embeds = {"image_embeds": torch.zeros(54, 128), "image_grid_thw": torch.tensor([[1, 12, 18]])}
        with pytest.raises(ValueError, match=r"embed"):
            greedy(llm, [{"prompt": text(["landscape"]), "multi_modal_data": {"image": embeds}}])


def test_without_the_key_it_is_the_stock_class(qwen):
    folder, model, asked = qwen
    with running(folder) as (llm, kept):
        for (_, inputs), mine in zip(asked, greedy(llm, [prompt for prompt, _ in asked]), strict=True):
            same(mine, in_transformers(model, inputs, None, None))
        config = llm.config
        assert type(MULTIMODAL_REGISTRY.get_processing_info(config)) is Qwen2_5_VLProcessingInfo
        assert config.multimodal_config.video_pruning_rate is None and not kept
