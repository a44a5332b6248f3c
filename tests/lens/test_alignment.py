"""The alignment of pictures and text, layer by layer."""

import reference as ref
import torch

import foveate
import tiny
from foveate.lens import alignment


def test_cosine_of_the_means_of_every_layer():
    model, batch = ref.model_of("llava"), ref.batch_of("llava")
    score = alignment(model, batch)
    assert score.shape == (2, 5), "two prompts with images, four layers and what comes out"
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    image = batch["input_ids"][1] == tiny.image_token_id("llava", model)
    text = ~image & batch["attention_mask"][1].bool()
    a, b = states[3][1][image].mean(0), states[3][1][text].mean(0)
    torch.testing.assert_close(score[1, 3], a @ b / a.norm() / b.norm())


def test_skipping_a_layer_shows_in_it():
    """With skipped feed-forward networks the score is read in the same way, and is another."""
    model, batch = ref.model_of("llava"), ref.batch_of("llava")
    before = alignment(model, batch)
    with foveate.compress(model, "ima:interval=2"):
        after = alignment(model, batch)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-3
