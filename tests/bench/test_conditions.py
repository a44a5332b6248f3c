"""Degraded pictures: harder with severity, the same every time, of the same size."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.bench.grid.conditions import CONDITIONS, KINDS, SEVERITIES, conditions_of, opening, under
from foveate.bench.tasks import Task
from foveate.errors import UnsupportedError


@dataclass
class Sample:
    images: list[Any]
    slice: str = "one"
    question: str = "what"
    answer: str = ""
    history: list[Any] = field(default_factory=list)


def picture() -> Image.Image:
    """Edges, a slope and some texture."""
    y, x = np.mgrid[:96, :128]
    values = np.stack([x * 2, y * 2, 255 * ((x // 8 + y // 8) % 2)], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


def task() -> Task:
    return Task(
        "t", [Sample([picture(), picture()])], lambda processor, part: [s.images for s in part], lambda a, b: True
    )


def shown(condition: str) -> list[Image.Image]:
    one = under(task(), condition)
    return one.inputs(None, one.samples)[0]


def apart(image: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(picture(), dtype=float)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_severities_rise(kind):
    found = [apart(shown(f"{kind}-{severity}")[0]) for severity in SEVERITIES]
    assert 0 < found[0] < found[1] < found[2]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_size_and_repetition(condition):
    first, second = shown(condition), shown(condition)
    assert [image.size for image in first] == [picture().size] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert np.array_equal(first[0], first[1]), "the same picture is spoilt the same way wherever it is"


def test_clean_is_the_task_itself_and_samples_are_left_alone():
    one = task()
    assert under(one, "clean") is one
    under(one, "dark-3").inputs(None, one.samples)
    assert apart(one.samples[0].images[0]) == 0


def test_darkness_takes_the_light_it_says():
    mean = np.asarray(picture(), dtype=float).mean()
    for severity, light in zip(SEVERITIES, (1 / 3, 1 / 10, 1 / 30), strict=True):
        assert np.asarray(shown(f"dark-{severity}")[0], dtype=float).mean() == pytest.approx(mean * light, rel=0.03)


def test_names():
    assert conditions_of([]) == ["clean"]
    assert conditions_of(["jpeg"]) == ["clean", "jpeg-1", "jpeg-2", "jpeg-3"]
    assert conditions_of(["blur-2", "blur"]) == ["clean", "blur-2", "blur-1", "blur-3"]
    assert conditions_of(["all"]) == list(CONDITIONS)
    with pytest.raises(UnsupportedError, match="fog"):
        conditions_of(["fog"])
    with pytest.raises(UnsupportedError, match="blur-4"):
        under(task(), "blur-4")


def test_opening_is_the_first_turn():
    talk = Sample([picture()], question="third", history=[("first", "a"), ("second", "b")])
    assert (opening(talk).question, opening(talk).history, opening(talk).images) == ("first", [], talk.images)
    with pytest.raises(UnsupportedError, match="earlier turns"):
        opening(Sample([picture()]))
