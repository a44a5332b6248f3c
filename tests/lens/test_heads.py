"""Which heads look at pictures."""

import pytest
import reference as ref
import torch

import foveate
import tiny
from foveate.errors import UnsupportedError
from foveate.lens import looking_heads, ratios


def test_ratios_are_sums_of_the_maps():
    model, batch = ref.model_of("llava", "eager"), ref.batch_of("llava")
    measured = ratios(model, [batch])
    assert measured.shape == (2, 4, 4), "the prompt without an image is left out"
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
    image = batch["input_ids"][0] == tiny.image_token_id("llava", model)
    valid = batch["attention_mask"][0].bool()
    one = maps[2][0, 3][valid]
    torch.testing.assert_close(measured[0, 2, 3], one[:, image].sum() / one[:, valid & ~image].sum())


def test_a_head_looks_if_it_does_in_enough_samples():
    measured = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]] * 2 + [[[0.9, 0.9], [0.2, 0.1]]] * 3)  # five samples, two layers
    assert looking_heads(measured, 0.5, spare=0) == ((0, 1), ()), "above in three of five; the other in two"
    assert looking_heads(measured, 0.25, spare=0) == ((0,), ())
    assert looking_heads(measured, 0.25, spare=1) == ((0, 1), ())
    plan = foveate.Plan.of({"method": "fewer_efforts", "options": {"heads": looking_heads(measured, 0.5, spare=0)}})
    with foveate.compress(ref.model_of("llava"), plan) as run:
        ref.logits_of(ref.model_of("llava"), ref.batch_of("llava"))
    assert run.report.tokens_in == run.report.tokens_out


def test_kernels_without_maps_are_refused():
    with pytest.raises(UnsupportedError, match="eager"):
        ratios(ref.model_of("llava", "sdpa"), [ref.batch_of("llava")])
