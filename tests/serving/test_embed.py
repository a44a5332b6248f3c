"""Embeddings for a server are what the language model of transformers gets under the same plan, and nothing else runs."""

import pytest
import torch

import foveate
import tiny
from foveate.serving.embed import embed_images

PROMPTS = [[3, ("image", "a"), 4, ("image", "a"), 5], [2, ("image", "a"), 6]]


@pytest.fixture(scope="module")
def llava():
    model = tiny.build("llava")
    return model, tiny.inputs("llava", model, PROMPTS)


def fed(model, inputs, plan, **more):
    """The rows of input embeddings that a compressed model feeds to its decoder, and the report."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with foveate.compress(model, plan, positions="contiguous", **more) as run, torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0], run.report


@pytest.mark.parametrize(
    "plan",
    [
        "divprune:keep=0.25",
        "visionzip:keep=9",
        "random:keep=0.5 > divprune:keep=4",
        "cdpruner:keep=7",
        "resize:keep=9",
        "tome_tower:keep=12",
        "divprune:keep=12/total",
        "divprune:keep=1.0",
    ],
)
def test_the_language_model_would_get_the_same_rows(llava, plan):
    model, inputs = llava
    found = embed_images(model, inputs, plan)
    assert [len(pictures) for pictures in found] == [2, 1]
    rows, report = fed(model, inputs, plan)
    assert [len(x) for pictures in found for x in pictures] == [image.tokens_out for image in report.images]
    for sample, pictures in enumerate(found):
        for x in pictures:  # as a run of neighbouring rows of its own prompt
            windows = rows[sample].unfold(0, len(x), 1).mT
            assert (windows == x).flatten(1).all(1).any()


def test_counts_may_follow_the_picture(llava):
    model, inputs = llava
    lengths = {len(x) for pictures in embed_images(model, inputs, "prumerge:keep=20,adaptive=true") for x in pictures}
    assert lengths and max(lengths) <= 20


def test_neither_decoder_nor_hooks_are_left(llava):
    model, inputs = llava
    ran = []
    hook = model.model.language_model.register_forward_pre_hook(lambda *args: ran.append(1))
    before = model(**inputs).logits
    ran.clear()
    embed_images(model, inputs, "divprune", keep=0.25)
    assert not ran
    hook.remove()
    assert torch.equal(model(**inputs).logits, before)
    assert not model._forward_pre_hooks and "get_image_features" not in model.model.__dict__


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("divprune:keep=0.5 > fastv:layer=2,keep=0.5", "inside the language model"),
        ("snapkv:keep=20", "inside the language model"),
    ],
)
def test_steps_on_the_server_are_refused(llava, plan, says):
    model, inputs = llava
    with pytest.raises(foveate.UnsupportedError, match=says):
        embed_images(model, inputs, plan)


def test_inputs_without_pictures_are_refused(llava):
    model, _ = llava
    words = {"input_ids": torch.tensor([[1, 40, 41]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(foveate.UnsupportedError, match="no pictures"):
        embed_images(model, words, "divprune:keep=0.5")


@pytest.mark.parametrize(("name", "says"), [("qwen2_5_vl", "wrong places"), ("internvl", "was not tried")])
def test_models_whose_servers_count_otherwise_are_refused(name, says):
    model = tiny.build(name)
    with pytest.raises(foveate.UnsupportedError, match=says):
        embed_images(model, tiny.inputs(name, model, [[2, ("image", "a"), 2]]), "divprune:keep=0.5")
