"""LLaVA: the same tokens stay as in transformers, the answers are the same, and prompts are as short as they should be."""

import pytest
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.model_executor.models.llava import LlavaMultiModalProcessor, LlavaProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

import small_siglip
from conftest import greedy, in_transformers, running
from foveate import testbed

PLANS = [
    "divprune:keep=1.0",
    "divprune:keep=0.25",
    "visionzip:keep=64",  # attention, keys, features before the connector; merges
    "hiprune:keep=100",  # attention of an early block
    "norm:keep=0.5 > divprune:keep=60",
]


@pytest.fixture(scope="module")
def asked():
    """(sample, prompt for vLLM, inputs for transformers): pictures that differ, one and two in a prompt."""
    _, processor = testbed.load()
    found = []
    for sample in [*testbed.samples(["reading-short"], 2), *testbed.samples(["two-images"], 2)]:
        text = processor.apply_chat_template(testbed.messages(sample), add_generation_prompt=True, tokenize=False)
        found.append(
            (
                sample,
                {"prompt": text, "multi_modal_data": {"image": sample.images}},
                testbed.inputs(processor, [sample]),
            )
        )
    return found


@pytest.fixture(scope="module")
def model():
    return testbed.load()[0]


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_tokens_stay_and_the_answers_are_the_same(testbed_folder, model, asked, plan):
    with running(testbed_folder, plan) as (llm, kept):
        found, seen = [], []
        for _, prompt, _ in asked:
            kept.clear()
            found += greedy(llm, [prompt])
            seen.append([list(each) for each in kept])
    for (_, _, inputs), mine, tokens in zip(asked, found, seen, strict=True):
        length, new, total, theirs = in_transformers(model, inputs, plan, "contiguous")
        assert tokens == theirs
        assert mine[:2] == (length, new)
        assert mine[2] == pytest.approx(total, abs=1e-3)


def test_prompts_are_shorter_for_the_scheduler_and_for_profiling(testbed_folder, asked):
    _, prompt, inputs = asked[0]
    text = inputs["input_ids"].shape[1] - 576
    for plan, visual in [(None, 576), ("divprune:keep=0.25", 144)]:
        with running(testbed_folder, plan) as (llm, _):
            assert greedy(llm, [prompt], 1)[0][0] == text + visual
            processor = MULTIMODAL_REGISTRY.create_processor(llm.config)
            assert get_mm_max_toks_per_item(processor, {"image": 1}, None) == {"image": visual}


def test_a_prefix_cache_changes_nothing(testbed_folder, asked):
    prompts = [prompt for _, prompt, _ in asked]
    plain = []
    for cached in (False, True):
        with running(testbed_folder, "divprune:keep=0.25", enable_prefix_caching=cached, mm_processor_cache_gb=1) as (
            llm,
            kept,
        ):
            first = greedy(llm, prompts)
            encoded = len(kept)
            again = greedy(llm, prompts)
            assert all((each[3] > 0) == cached for each in again)
            plain.append(first)
            assert [each[:2] for each in again] == [each[:2] for each in first]
            assert encoded == len({image.tobytes() for sample, _, _ in asked for image in sample.images})
    assert [each[:2] for each in plain[0]] == [each[:2] for each in plain[1]]


def test_all_at_once_is_one_by_one(testbed_folder, asked):
    """Several pictures in one step, encoded in groups: a step may hold more of them than the tower was measured with."""
    prompts = [prompt for _, prompt, _ in asked]
    with running(testbed_folder, "divprune:keep=0.1", max_num_batched_tokens=1400) as (llm, kept):
        together = greedy(llm, prompts, together=True)
        seen = sorted(kept)
        kept.clear()
        assert [each[:2] for each in greedy(llm, prompts)] == [each[:2] for each in together]
        assert sorted(kept) in (seen, [])  # vLLM may still hold what it encoded


def test_without_the_key_it_is_the_stock_class(testbed_folder, model, asked):
    _, prompt, inputs = asked[2]
    with running(testbed_folder) as (llm, kept):
        (mine,) = greedy(llm, [prompt])
        config = llm.config
        assert get_model_cls(config).__module__ == "foveate_vllm.llava"
        assert type(MULTIMODAL_REGISTRY.get_processing_info(config)) is LlavaProcessingInfo
        assert type(MULTIMODAL_REGISTRY.create_processor(config)) is LlavaMultiModalProcessor
    length, new, total, _ = in_transformers(model, inputs, None, None)
    assert mine[:2] == (length, new) and mine[2] == pytest.approx(total, abs=1e-3) and not kept


@pytest.mark.parametrize("plan", ["fastervlm:keep=0.25", "visionzip:keep=40"])
def test_a_siglip_tower(tmp_path, plan):
    """No CLS token: scores are what a token receives on average."""
    folder, model, processor = small_siglip.build(tmp_path)
    (sample,) = testbed.samples(["two-images"], 1)
    text = processor.apply_chat_template(testbed.messages(sample), add_generation_prompt=True, tokenize=False)
    with running(folder, plan) as (llm, kept):
        (mine,) = greedy(llm, [{"prompt": text, "multi_modal_data": {"image": sample.images}}])
        tokens = [list(each) for each in kept]
    inputs = processor(images=sample.images, text=text, return_tensors="pt")
    length, new, total, theirs = in_transformers(model, inputs, plan, "contiguous")
    assert tokens == theirs and mine[:2] == (length, new)
    assert mine[2] == pytest.approx(total, abs=1e-3)
