import math

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from foveate import Plan, compress, lens
from foveate.methods.embedlens import ALIVE, DEAD, SINK, EmbedLens, nearest_words
from foveate.tokens import Extra, View


def at(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


WORDS = at(0, 90, 180, 270)  # ids 0 to 3
TOKENS = at(5, 100, 170, 95, 260, 10)  # nearest: 0, 1, 2, 1, 3, 0


def view(k: int, x: torch.Tensor = TOKENS) -> View:
    return View(x, k, extras={"vocabulary": Extra(WORDS)})


def test_nearest_words_by_hand():
    cosines, ids = nearest_words(TOKENS, WORDS, 2)
    assert ids.tolist() == [[0, 1], [1, 2], [2, 1], [1, 2], [3, 2], [0, 1]]
    torch.testing.assert_close(cosines[0], torch.tensor([5.0, 85.0]).deg2rad().cos())
    for rows in (1, 3):
        torch.testing.assert_close(nearest_words(TOKENS, WORDS, 2, rows), (cosines, ids))
    assert nearest_words(TOKENS, WORDS, 9)[1].shape == (6, 4)


def test_sinks_go_first_then_the_dead_then_what_resembles_a_word_least():
    method = EmbedLens(sink=(3,), dead=(1,), nearest=1)
    assert method.classes(method.look(view(1))[1]).tolist() == [ALIVE, DEAD, ALIVE, DEAD, SINK, ALIVE]
    assert method(view(5)).anchor.tolist() == [0, 1, 2, 3, 5]
    assert method(view(3)).anchor.tolist() == [0, 2, 5], "the first two classes are gone"
    assert method(view(4)).anchor.tolist() == [0, 2, 3, 5], "of the dead, the one 5 degrees from its word stays"
    assert method(view(1)).anchor.tolist() == [0]


def test_a_sink_that_is_dead_too_is_a_sink():
    assert EmbedLens(sink=(2,), dead=(1,), nearest=2).classes(torch.tensor([[1, 2], [0, 1], [0, 3]])).tolist() == [
        2,
        1,
        0,
    ]


def test_without_ids_the_commonest_word_is_dead():
    x = at(5, 100, 95, 88, 260)
    method = EmbedLens(nearest=1)
    assert method.classes(method.look(view(1, x))[1]).tolist() == [ALIVE, DEAD, DEAD, DEAD, ALIVE]


def test_ids_survive_plan_text():
    plan = Plan.of("embedlens:keep=64,sink=(1141, 26673),dead=(30296,)")
    assert Plan.of(str(plan)) == plan and plan.steps[0].method.sink == (1141, 26673)
    for wrong in ({"sink": 3}, {"dead": ("a",)}, {"nearest": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EmbedLens(**wrong)


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


def test_label_map_and_prune(model):
    """The `works` sentence: label each visual token, show the map on the picture, prune the first two groups."""
    inputs = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    (first,) = lens.label(model, inputs)
    common = first.words[:, 0].mode().values.item()
    rare = next(w for w in first.words[:, 0].tolist() if w != common)
    (one,) = lens.label(model, inputs, sink=(rare,), dead=(common,), nearest=1)
    assert set(one.labels.tolist()) == {ALIVE, DEAD, SINK} and sum(one.shares().values()) == pytest.approx(1)
    with compress(
        model, f"embedlens:sink=({rare},),dead=({common},),nearest=1", keep=int((one.labels == 0).sum())
    ) as run:
        model(**inputs)
    assert run.report.images[0].kept.tolist() == (one.labels == 0).nonzero()[:, 0].tolist()

    rows, cols = one.report.grids[0]
    picture = Image.new("RGB", (8 * cols, 8 * rows), (200, 100, 50))
    pixels = np.asarray(lens.drawn(picture, one))
    colours = {
        label: tuple(pixels[8 * (i // cols) + 4, 8 * (i % cols) + 4]) for i, label in enumerate(one.labels.tolist())
    }
    assert colours[ALIVE] == (200, 100, 50) and len(set(colours.values())) == 3


def test_words_are_found_from_pictures():
    """A word whose tokens are the same in all pictures marks sinks, nearly the same ones dead tokens, others nothing."""
    generator = torch.Generator().manual_seed(0)

    def one(seed: int) -> lens.Labelled:
        alive = torch.randn(3, 8, generator=generator)
        dead = torch.ones(2, 8) + 0.2 * torch.randn(2, 8, generator=generator)
        x = torch.cat([torch.eye(8)[:1], dead, alive])
        words = torch.tensor([7, 4, 4, 1, 2, 3])[:, None]
        return lens.Labelled(torch.zeros(6), words, torch.zeros(6, 1), x, None)

    assert lens.find_words([one(i) for i in range(40)]) == {"sink": (7,), "dead": (4,)}
    assert lens.find_words([one(0)]) == {"sink": (), "dead": ()}, "one picture tells nothing"
