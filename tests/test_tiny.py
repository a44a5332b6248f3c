"""The tiny models behave like the real classes: everything else in the suite builds on this."""

import inspect

import pytest
import torch

import tiny

MIXED = [[3, ("image", "a"), 4], [2, ("image", "a"), 3, ("image", "b"), 5], [6]]

# Families whose stock beam search cannot take images. Llama4 keeps its features in `last_hidden_state`, but
# `_expand_multimodal_outputs` repeats `pooler_output` only, so there are more placeholders than features.
NO_STOCK_BEAMS = {"llama4"}

pytestmark = pytest.mark.parametrize("name", tiny.FAMILIES)


def encode(model, batch):
    """get_image_features and what is left of the batch for forward; features are the field that forward merges."""
    method = model.base_model.get_image_features
    names = inspect.signature(method).parameters
    out = method(**{k: v for k, v in batch.items() if k in names}, return_dict=True)
    field = "pooler_output" if out.get("pooler_output") is not None else "last_hidden_state"
    return out, field, {k: v for k, v in batch.items() if k not in names or k == "image_grid_thw"}


def pictures(prompt):
    return [segment for segment in prompt if not isinstance(segment, int)]


def rows(features):
    return (features if torch.is_tensor(features) else torch.cat(list(features))).flatten(0, -2)


def generated(model, batch, count=3, **more):
    out = model.generate(**batch, max_new_tokens=count, do_sample=False, **more)
    return out[:, batch["input_ids"].shape[1] :]


@torch.no_grad()
def test_forward(name):
    model = tiny.build(name)
    batch = tiny.inputs(name, model, MIXED)
    logits = model(**batch).logits
    real = logits[batch["attention_mask"].bool()]
    assert logits.shape == (*batch["input_ids"].shape, tiny.VOCAB)
    assert real.isfinite().all()
    assert 1 < real.abs().max() < 50
    assert (batch["input_ids"][batch["attention_mask"].bool()] != tiny.PAD).all()
    eager = tiny.build(name, attn="eager")(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(eager, real, atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_does_not_matter(name, padding):
    model = tiny.build(name)
    batch = tiny.inputs(name, model, MIXED, padding=padding)
    logits = model(**batch).logits
    for i, prompt in enumerate(MIXED):
        alone = model(**tiny.inputs(name, model, [prompt], first=i)).logits[0]
        torch.testing.assert_close(logits[i][batch["attention_mask"][i].bool()], alone, atol=2e-4, rtol=0)


def test_generate_in_a_batch_and_alone(name):
    model = tiny.build(name)
    together = generated(model, tiny.inputs(name, model, MIXED))
    assert together.shape == (3, 3)
    assert (together >= tiny.TEXT).all()
    for i, prompt in enumerate(MIXED):
        assert torch.equal(together[i], generated(model, tiny.inputs(name, model, [prompt], first=i))[0])


def test_beams(name):
    if name in NO_STOCK_BEAMS:
        pytest.skip("stock generate refuses")
    model = tiny.build(name)
    assert generated(model, tiny.inputs(name, model, MIXED), num_beams=2).shape == (3, 3)


def test_text_only_batch(name):
    model = tiny.build(name)
    batch = tiny.inputs(name, model, [[6], [9]])
    assert "pixel_values" not in batch
    assert generated(model, batch, 8).shape == (2, 8)


def test_deterministic(name):
    one, two, other = (tiny.build(name, seed) for seed in (0, 0, 1))
    for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert not torch.equal(one.get_output_embeddings().weight, other.get_output_embeddings().weight)
    first, again, changed = (tiny.inputs(name, one, MIXED, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixel_values"], changed["pixel_values"])


@torch.no_grad()
def test_counts(name):
    model = tiny.build(name)
    image = tiny.image_token_id(name, model)
    batch = tiny.inputs(name, model, MIXED)
    expected = [
        sum(tiny.image_counts(name, model, s[1], len(images)) for s in images) for images in map(pictures, MIXED)
    ]
    assert (batch["input_ids"] == image).sum(-1).tolist() == expected
    out, field, _ = encode(model, batch)
    assert len(rows(out[field])) == sum(expected)
    assert tiny.image_counts(name, model, "a") >= 24
    assert all(16 <= tiny.image_counts(name, model, size) <= 64 for size in "ab")


@torch.no_grad()
def test_every_token_matters(name):
    model = tiny.build(name)
    batch = tiny.inputs(name, model, MIXED[:1])
    out, field, rest = encode(model, batch)
    before = model(**rest, mm_encoder_outputs={"image": out}).logits[0, -1]
    torch.testing.assert_close(before, model(**batch).logits[0, -1], atol=0, rtol=0)
    for i in range(len(rows(out[field]))):
        out, field, rest = encode(model, batch)
        features = out[field] if torch.is_tensor(out[field]) else out[field][0]
        features.view(-1, features.shape[-1])[i] = 0
        after = model(**rest, mm_encoder_outputs={"image": out}).logits[0, -1]
        assert (after - before).abs().max() > 1e-3


@torch.no_grad()
def test_features_differ(name):
    model = tiny.build(name)
    out, field, _ = encode(model, tiny.inputs(name, model, MIXED[:1]))
    features = rows(out[field])
    if name.startswith("llava_"):  # rows of the newline embedding are equal by design
        features = features[(features != model.model.image_newline).any(-1)]
    cosine = torch.nn.functional.normalize(features, dim=-1)
    assert (cosine @ cosine.T).fill_diagonal_(-1).max() < 0.98


def test_window(name):
    if name not in tiny.WINDOWED:
        pytest.skip("no windowed layers")
    wide, narrow = tiny.build(name), tiny.build(name, window=24)
    assert len(set(wide.config.text_config.layer_types)) == 2
    batch = tiny.inputs(name, wide, MIXED)
    with torch.no_grad():
        assert (wide(**batch).logits - narrow(**batch).logits).abs().max() > 0.1
    together = generated(narrow, batch)
    for i, prompt in enumerate(MIXED):
        assert torch.equal(together[i], generated(narrow, tiny.inputs(name, narrow, [prompt], first=i))[0])
