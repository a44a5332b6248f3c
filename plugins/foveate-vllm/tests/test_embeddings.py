"""Embeddings compressed in transformers: any method, any number of tokens, several numbers in one engine and one step."""

import pytest
from vllm.model_executor.model_loader.utils import get_model_cls

from conftest import greedy, in_transformers, running
from foveate import testbed
from foveate.serving.embed import embed_images

PLANS = [
    "divprune:keep=0.25",
    "divprune:keep=60",
    "cdpruner:keep=100",  # looks at the question
    "prumerge:keep=200,adaptive=true",  # the picture decides how many stay
    "tome_tower:keep=0.5",  # inside the tower
    "divprune:keep=1.0",
]


@pytest.fixture(scope="module")
def asked():
    """The same two prompts under every plan: (prompt for vLLM, what transformers says)."""
    model, processor = testbed.load()
    found = []
    for plan in PLANS:
        for sample in [*testbed.samples(["attribute"], 1), *testbed.samples(["two-images"], 1)]:
            inputs = testbed.inputs(processor, [sample])
            text = processor.apply_chat_template(testbed.messages(sample), add_generation_prompt=True, tokenize=False)
            (pictures,) = embed_images(model, inputs, plan, processor=processor)
            more = {"processor": processor}
            theirs = in_transformers(model, inputs, plan, "contiguous", **more)
            found.append(({"prompt": text, "multi_modal_data": {"image": pictures}}, theirs))
    return found


def check(found, asked):
    for mine, (_, theirs) in zip(found, asked, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], abs=1e-3)


def test_the_plug_in_takes_several_lengths_in_one_step(testbed_folder, asked):
    lengths = {len(x) for prompt, _ in asked for x in prompt["multi_modal_data"]["image"]}
    assert len(lengths) > 4
    with running(testbed_folder, enable_mm_embeds=True, enable_prefix_caching=True, mm_processor_cache_gb=1) as (
        llm,
        _,
    ):
        prompts = [prompt for prompt, _ in asked]
        check(greedy(llm, prompts, together=True), asked)
        check(greedy(llm, prompts), asked)  # from the caches: every budget finds its own


def test_an_engine_with_a_plan_takes_them_as_they_are(testbed_folder, asked):
    with running(testbed_folder, "random:keep=0.5", enable_mm_embeds=True) as (llm, kept):
        check(greedy(llm, [prompt for prompt, _ in asked[:4]]), asked[:4])
        assert not kept


def test_the_stock_class_takes_them_one_by_one(testbed_folder, asked, stock_llava):
    with running(testbed_folder, enable_mm_embeds=True, enable_prefix_caching=True) as (llm, _):
        assert get_model_cls(llm.config).__module__ == "vllm.model_executor.models.llava"
        even = [one for one in asked if len({len(x) for x in one[0]["multi_modal_data"]["image"]}) == 1]
        assert len(asked) - len(even) == 1  # two pictures of different lengths in one prompt stop it
        check(greedy(llm, [prompt for prompt, _ in even]), even)
