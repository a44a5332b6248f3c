"""`foveate run` on a random model with the testbed's own processor: the whole path, from files to two answers."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate.cli import app
from foveate.cli.tools import load

ASK = ("--ask", "what color is the circle")


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from foveate.testbed.model import build_model
    from foveate.testbed.text import build_processor

    path = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    paths = [tmp_path_factory.mktemp("pictures") / f"{colour}.png" for colour in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (300, 200), path.stem).save(path)
    return paths


def run(folder, pictures, *more):
    images = [word for path in pictures for word in ("--image", path)]
    return invoke("run", folder, *images, *ASK, "--max-new-tokens", 2, *more)


def test_both_answers_tokens_and_times(folder, pictures):
    done = run(folder, pictures[:1], "--method", "norm", "--keep", "0.25", "--repeats", 1, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["report"]["tokens_in"] == 576 and found["report"]["tokens_out"] == 144
    assert found["report"]["sequence_in"] - found["report"]["sequence_out"] == 432
    assert isinstance(found["uncompressed"], str) and isinstance(found["compressed"], str)
    assert found["time"]["first_token"] > 0


def test_several_pictures_a_view_and_people_can_read_it(folder, pictures, tmp_path):
    view = tmp_path / "out" / "kept.png"
    done = run(folder, pictures, "--plan", "norm:keep=64", "--repeats", 0, "--save-view", view)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "576 to 64, 576 to 64" in text and "norm:keep=64/image" in text
    with Image.open(view) as image:
        assert image.width > 2 * 384


def test_classes_of_tokens_are_told_and_drawn(folder, pictures, tmp_path):
    """By the words of the plan's own step, or, without one, by the commonest word of each picture."""
    view = tmp_path / "out" / "classes.png"
    common = ("--repeats", 0, "--json", "--save-classes", view)
    found = json.loads(run(folder, pictures, "--method", "norm", "--keep", 64, *common).stdout)
    assert [one["picture"] for one in found["classes"]] == [0, 1] and found["classes_view"] == str(view)
    for one in found["classes"]:
        assert len(one["labels"]) == 576 and set(one["labels"]) <= {"alive", "dead"}
        assert one["shares"]["dead"] == pytest.approx(one["labels"].count("dead") / 576) and one["shares"]["dead"] > 0
        assert one["shares"]["sink"] == 0
    with Image.open(view) as image:
        assert image.width > 2 * 384

    every = ", ".join(map(str, range(1000)))  # all words mark sinks
    plan = f"embedlens:keep=64,sink=({every})"
    done = run(folder, pictures[:1], "--plan", plan, "--repeats", 0, "--save-classes", view)
    assert "picture 0 0 % alive, 0 % dead, 100 % sink" in " ".join(done.stdout.split())
    with Image.open(view) as image:
        assert max(image.size) == 384, "one picture, as large as it has to be"


def test_nothing_dropped_gives_the_same_answer(folder, pictures):
    done = run(folder, pictures[:1], "--method", "norm", "--keep", "1.0", "--repeats", 0, "--json")
    found = json.loads(done.stdout)
    assert found["same"] and found["report"]["tokens_out"] == 576


def test_a_plan_file_and_positions(folder, pictures, tmp_path):
    from foveate import Plan

    Plan.of("norm", 64).save(tmp_path / "recipe.json")
    done = run(
        folder, pictures[:1], "--plan", tmp_path / "recipe.json", "--positions", "contiguous", "--repeats", 0, "--json"
    )
    assert json.loads(done.stdout)["positions"] == "contiguous"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "norm", "--keep", "9.0"], "is not a budget"),
        (["--method", "norm"], "no budget"),
        (["--keep", "9"], "--plan"),
        (["--method", "norm", "--plan", "norm:keep=9"], "either"),
        (["--method", "nrom", "--keep", "9"], "norm"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(options, says, pictures):
    done = run("/nowhere", pictures[:1], *options)
    assert done.exit_code == 2 and says in done.stderr
    assert "nowhere" not in done.stderr


def test_a_model_that_is_not_there(pictures):
    done = run("/nowhere/at/all", pictures[:1], "--method", "norm", "--keep", "9")
    assert done.exit_code == 2 and "/nowhere/at/all" in done.stderr and "testbed" in done.stderr


def test_a_file_that_is_no_picture(folder, tmp_path):
    path = tmp_path / "a.png"
    path.write_text("text")
    done = run(folder, [path], "--method", "norm", "--keep", "9")
    assert done.exit_code == 2 and "a.png" in done.stderr


def test_a_processor_that_needs_torchvision(monkeypatch, tmp_path):
    import importlib.util

    import transformers

    from foveate.errors import MissingExtraError

    def fail(*args, **kwargs):
        raise ImportError("\nSomeProcessor requires the Torchvision library but it was not found")

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchvision" else real(name, *a))
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    with pytest.raises(MissingExtraError, match="torchvision") as caught:
        load(str(tmp_path), "cpu", "auto")
    assert "torch" in caught.value.hint
