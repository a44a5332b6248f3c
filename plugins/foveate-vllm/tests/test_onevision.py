"""LLaVA-OneVision: tokens, answers and their probabilities as in transformers, for pictures of any size in tiles."""

import random

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.llava_onevision import LlavaOnevisionMultiModalProcessor, LlavaOnevisionProcessingInfo
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

import small_onevision
from conftest import greedy, in_transformers, running
from foveate.families import adapt
from foveate.tokens import Kind
from foveate_vllm import newlines
from foveate_vllm.llava_onevision import LlavaOnevisionForConditionalGeneration
from small_onevision import SIDE, SIZES, picture, text

PROMPTS = [
    ["landscape"],
    ["portrait"],
    ["portrait", "landscape"],
    ["square", "portrait"],
    ["large"],
    ["large", "landscape"],
]
CASES = [
    "divprune:keep=1.0",
    "divprune:keep=0.25",
    "fastervlm:keep=0.25",  # attention
    "visionzip:keep=20",  # and keys, features before the connector; merges
    "norm:keep=0.5 > divprune:keep=12",
]


@pytest.fixture(scope="module")
def onevision(tmp_path_factory):
    """Folder, model, and of each prompt what vLLM and what transformers gets. A kind at a place is always the same picture."""
    folder, model, processor = small_onevision.build(tmp_path_factory.mktemp("onevision"))
    asked = []
    for kinds in PROMPTS:
        pictures = [picture(kind, seed) for seed, kind in enumerate(kinds)]
        inputs = processor(text=text(kinds), images=pictures, return_tensors="pt")
        asked.append(({"prompt": text(kinds), "multi_modal_data": {"image": pictures}}, dict(inputs)))
    return folder, model, asked


def layout_of(model, kind):
    width, height = SIZES[kind]
    return adapt(model).layouts({"image_sizes": [[height, width]]}, None)[0]


def same(mine, theirs):
    assert mine[:2] == theirs[:2]
    assert mine[2] == pytest.approx(theirs[2], abs=1e-3)


@pytest.mark.parametrize("plan", CASES)
def test_the_same_tokens_stay_and_the_answers_are_the_same(onevision, plan):
    folder, model, asked = onevision
    with running(folder, plan) as (llm, kept):
        found = []
        for prompt, _ in asked:
            kept.clear()
            found.append((greedy(llm, [prompt])[0], [list(each) for each in kept]))
    for (_, inputs), (mine, tokens) in zip(asked, found, strict=True):
        theirs = in_transformers(model, inputs, plan, "contiguous", newlines=True)
        # A picture that an earlier prompt had may still be held, and is not encoded again.
        assert tokens == theirs[3][len(theirs[3]) - len(tokens) :]
        same(mine, theirs)


@pytest.mark.parametrize("plan", CASES)
def test_every_newline_stays_and_the_content_is_that_of_the_usual_rule(onevision, plan):
    _, model, asked = onevision
    gone = 0
    for kinds, (_, inputs) in zip(PROMPTS, asked, strict=True):
        usual = in_transformers(model, inputs, plan, "contiguous", 1)[3]
        ours = in_transformers(model, inputs, plan, "contiguous", 1, newlines=True)[3]
        for kind, less, more in zip(kinds, usual, ours, strict=True):
            ends = (layout_of(model, kind).kind == Kind.NEWLINE).nonzero()[:, 0].tolist()
            assert set(more) == {*less, *ends}
            gone += len(more) - len(less)
    assert (gone > 0) == (plan != "divprune:keep=1.0")  # else the two rules would be the same on these pictures


def test_pictures_are_of_all_kinds(onevision):
    """Otherwise the tests above would leave something out."""
    _, model, _ = onevision
    of = {kind: layout_of(model, kind) for kind in SIZES}
    shapes = {
        kind: (len(one.grids) - 1, one.n - SIDE**2, int((one.kind == Kind.NEWLINE).sum()), one.source.shape[1])
        for kind, one in of.items()
    }
    assert shapes == {  # tiles, tokens of their grid, rows of it, patches in a token
        "landscape": (2, 4 * 13, 4, 1),
        "portrait": (3, 18 * 5, 18, 1),
        "square": (4, 12 * 13, 12, 1),
        "large": (16, 17 * 19, 17, 4),
    }


def test_newlines_matter_to_this_model(onevision):
    """Otherwise the tests of their rule could not fail."""
    _, model, asked = onevision
    for _, inputs in asked:
        one, other = (
            in_transformers(model, inputs, "fastervlm:keep=12", "contiguous", newlines=rule)[2]
            for rule in (True, False)
        )
        assert abs(one - other) > 0.01  # ten times what is let pass


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("keep", ["1.0", "0.25"])
def test_a_prefix_cache_changes_nothing(onevision, keep, cached):
    """With blocks of 32 tokens the first is found, and ends inside a picture."""
    folder, model, asked = onevision
    plan = f"divprune:keep={keep}"
    with running(folder, plan, enable_prefix_caching=cached, block_size=32, mm_processor_cache_gb=1) as (llm, _):
        for again in (False, True):
            answers = greedy(llm, [prompt for prompt, _ in asked])
            assert [each[3] > 0 for each in answers] == ([cached] * len(asked) if again else SHARED[cached])
            for (_, inputs), mine in zip(asked, answers, strict=True):
                same(mine, in_transformers(model, inputs, plan, "contiguous", newlines=True))


# The third prompt begins with the picture of the second, the last with that of the fifth; no other with the same.
SHARED = {False: [False] * 6, True: [False, False, True, False, False, True]}


def test_steps_that_end_inside_a_picture_and_prompts_together(onevision):
    folder, model, asked = onevision
    plan, step = "divprune:keep=0.25", 96
    with running(folder, plan, enable_chunked_prefill=True, max_num_batched_tokens=step) as (llm, _):
        prompts = [prompt for prompt, _ in asked]
        for answers in (greedy(llm, prompts), greedy(llm, prompts, together=True)):
            for (_, inputs), mine in zip(asked, answers, strict=True):
                same(mine, in_transformers(model, inputs, plan, "contiguous", newlines=True))


def test_a_picture_does_not_mind_with_which_others_it_is_encoded(onevision, monkeypatch):
    """Their tiles differ in number, and only some have features before the connector."""
    folder, _, asked = onevision
    together, encoded = [], LlavaOnevisionForConditionalGeneration._encoded

    def counted(self, some):
        together.append(len(some["pixel_values"]))
        return encoded(self, some)

    monkeypatch.setattr(LlavaOnevisionForConditionalGeneration, "_encoded", counted)
    pictures = asked[5][0]["multi_modal_data"]["image"]
    alone = [{"prompt": text(["any"]), "multi_modal_data": {"image": [each]}} for each in pictures]
    both = {"prompt": text(["any"] * 2), "multi_modal_data": {"image": pictures}}
    found = []
    for prompts in (alone, [both]):
        with running(folder, "visionzip:keep=20", max_num_batched_tokens=1400) as (llm, kept):
            together.clear()
            greedy(llm, prompts, 1)
            found.append(([list(each) for each in kept], list(together)))
    assert [calls for _, calls in found] == [[1, 1], [2]]
    assert found[0][0] == found[1][0] and len(found[0][0]) == 2


def test_prompts_are_shorter_for_profiling_too(onevision):
    folder, model, asked = onevision
    content = (layout_of(model, "portrait").kind == Kind.CONTENT).sum().item()
    with running(folder, "divprune:keep=0.25", enable_mm_embeds=True) as (llm, _):
        processor = MULTIMODAL_REGISTRY.create_processor(llm.config)
        most = get_mm_max_toks_per_item(processor, {"image": 1}, None)
        dummy = processor.get_dummy_mm_inputs({"image": 1})["mm_placeholders"]["image"]
        assert [each.length for each in dummy] == [most["image"]]
        full = asked[1][1]["input_ids"].shape[1]
        assert greedy(llm, [asked[1][0]], 1)[0][0] == full - content + round(0.25 * content)
        ready = {
            "prompt": text(["any"]),
            "multi_modal_data": {"image": torch.zeros(1, 30, 128)},
        }  # passed on as they are
        assert greedy(llm, [ready], 1)[0][0] == full - layout_of(model, "portrait").n + 30
        with pytest.raises(ValueError, match=r"a video \[LLaVA-OneVision, vLLM with a plan"):
            greedy(llm, [{"prompt": "<s> <video>", "multi_modal_data": {"video": [torch.zeros(4, 96, 96, 3)]}}])


def test_without_the_key_it_is_the_stock_class(onevision):
    folder, model, asked = onevision
    with running(folder) as (llm, kept):
        for (_, inputs), mine in zip(asked, greedy(llm, [prompt for prompt, _ in asked]), strict=True):
            same(mine, in_transformers(model, inputs, None, None))
        config = llm.config
        assert type(MULTIMODAL_REGISTRY.get_processing_info(config)) is LlavaOnevisionProcessingInfo
        assert type(MULTIMODAL_REGISTRY.create_processor(config)) is LlavaOnevisionMultiModalProcessor
        assert not kept


# -- without weights ---------------------------------------------------------------------------------------------------


def configured(folder, plan, **more):
    return EngineArgs(str(folder), hf_overrides={"foveate": plan, **more}, dtype="float32").create_engine_config()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Configuration and processor with tiles and grids of the published models."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
    )

    from small_qwen import tokenizer_of

    folder = tmp_path_factory.mktemp("bare")
    tokenizer, ids = tokenizer_of(small_onevision.SPECIAL)
    some = {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(vocab_size=320, **some),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
    )
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    config.save_pretrained(folder)
    LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    ).save_pretrained(folder)
    return folder


def layouts_of(config, sizes):
    from foveate.families.llava_onevision import LlavaOnevision

    family = LlavaOnevision.__new__(LlavaOnevision)
    family.config = config
    return newlines.every(family.layouts({"image_sizes": sizes}, None))


@pytest.mark.parametrize(
    "plan", ["divprune:keep=1.0", "divprune:keep=0.25", "divprune:keep=64", "divprune:keep==2000/image"]
)
def test_placeholders_are_counted_from_sizes_alone(bare, plan):
    """As the connector stage counts them, and never more than vLLM makes room for."""
    from foveate import KeepError
    from foveate_vllm.plans import left, plan_of

    config = configured(bare, plan).model_config
    info = MULTIMODAL_REGISTRY.get_processing_info(config)
    largest = info.get_image_size_with_most_features()
    room = info.get_num_image_tokens(image_width=largest.width, image_height=largest.height)
    drawn = random.Random(0)
    sizes = [(drawn.randint(20, 3000), drawn.randint(20, 3000)) for _ in range(150)]
    sizes += [(width, round(width * drawn.uniform(0.4, 2.5))) for width in drawn.sample(range(40, 3000), 150)]
    for width, height in sizes:
        (layout,) = layouts_of(config.hf_config, [[height, width]])
        content = int((layout.kind == Kind.CONTENT).sum())
        try:
            expected = left(plan_of(config.hf_config), content) + layout.n - content
        except KeepError:
            with pytest.raises(KeepError):
                info.get_num_image_tokens(image_width=width, image_height=height)
            continue
        assert info.get_num_image_tokens(image_width=width, image_height=height) == expected <= room


@pytest.mark.parametrize(
    ("plan", "more", "says"),
    [
        ("fastv:layer=2,keep=0.5", {}, "stage 'layers'"),
        ("cdpruner:keep=0.25", {}, "looks at the question"),
        ("divprune:keep=0.25", {"foveate_positions": "original"}, "positions='original'"),
        ("divprune:keep=0.25", {"vision_aspect_ratio": "anyres_max_4"}, "'anyres_max_9' whatever"),
        ("divprune:keep=0.25", {"vision_feature_select_strategy": "default"}, "leaves out a token"),
        ("divprune:keep=0.25", {"vision_feature_layer": [-2, -1]}, "joins several blocks"),
        (
            "divprune:keep=0.25",
            {"vision_config": {"model_type": "clip_vision_model"}},
            "tower of type 'clip_vision_model'",
        ),
    ],
)
def test_refused_before_weights_are_read(bare, plan, more, says):
    with pytest.raises(ValueError, match=says):
        configured(bare, plan, **more)
