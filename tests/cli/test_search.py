"""`foveate search`: from samples to a plan in a file, which `foveate run` reads."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate import testbed
from foveate.cli import app
from foveate.cli.search import file_data
from foveate.cli.search import testbed_data as drawn
from foveate.errors import UnsupportedError
from foveate.plan import Plan


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
def lines(tmp_path_factory):
    """Six samples with a picture each, and one with two."""
    path = tmp_path_factory.mktemp("data")
    colours = ("red", "blue", "green", "yellow", "white", "cyan")
    for colour in colours:
        Image.new("RGB", (60, 40), colour).save(path / f"{colour}.png")
    entries = [{"image": f"{c}.png", "question": "what color is the circle", "answer": c} for c in colours]
    entries.append({"image": ["red.png", "blue.png"], "question": "how many circles are there", "answer": "0"})
    (path / "samples.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n\n")
    return path / "samples.jsonl"


def search(folder, lines, *more):
    return invoke("search", folder, "--data", lines, "--samples", 3, "--max-new-tokens", 2, *more)


def test_a_plan_that_run_reads(folder, lines, tmp_path):
    plan = tmp_path / "plans" / "found.json"
    done = search(folder, lines, "--eps", 1, "--out", plan, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["saved"] == str(plan) and found["plan"] == str(Plan.load(plan))
    assert found["checked_on"]["shares"][1:] == [0.0] * (len(found["checked_on"]["shares"]) - 1)
    assert found["checked_on"]["samples"] == 3 and 0 < found["flops"]["prefill"] < 1
    picture = lines.parent / "red.png"
    again = invoke(
        "run", folder, "--plan", plan, "--image", picture, "--ask", "what color is the circle", "--repeats", 0
    )
    assert again.exit_code == 0, again.output
    assert "gsearch:shares=" in "".join(again.stdout.split())


def test_people_can_read_it(folder, lines):
    done = search(folder, lines, "--method", "psigmoid", "--keep", 0.5, "--evaluations", 2)
    assert done.exit_code == 0, done.output
    for words in ("psigmoid:keep=50%", "agreement at a mean of 50%", "mean", "not searched on", "FLOPs", "95 %"):
        assert words in done.stdout
    done = search(folder, lines, "--method", "vtw", "--eta", 0)
    assert done.exit_code == 0 and "none: every layer" in done.stdout


def test_lines_are_searched_or_checked_on_but_not_both(lines):
    first, second, note = file_data(lines, 3, 0)
    assert len(first.samples) == len(second.samples) == 3 and "3 lines" in note
    assert not set(first.samples) & set(second.samples)
    assert file_data(lines, 3, 0)[0].samples == first.samples != file_data(lines, 3, 1)[0].samples
    assert len(file_data(lines, 99, 0)[1].samples) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0 samples"),
        ('{"image": "red.png"}', "line 1"),
        ("red.png", "line 1"),
        ('{"image": "pink.png", "question": "?"}', "pink.png"),
    ],
)
def test_files_that_hold_no_samples(tmp_path, text, says):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    (tmp_path / "some.jsonl").write_text(text)
    with pytest.raises(UnsupportedError, match=says):
        file_data(tmp_path / "some.jsonl", 3, 0)


def test_questions_of_the_testbed_are_new():
    first, second, note = drawn(13, 0)
    assert len(first.samples) == len(second.samples) == 13
    assert [first.slices(), second.slices()] == [list(testbed.SLICES)] * 2
    assert "none of its fixed set" in note
    fixed = {image.tobytes() for sample in testbed.samples(limit=4) for image in sample.images}
    for task, other in ((first, second), (second, first)):
        mine, theirs = ({i.tobytes() for s in t.samples for i in s.images} for t in (task, other))
        assert not mine & (fixed | theirs)


def test_the_testbed_without_its_generator(monkeypatch):
    def missing(*_):
        raise ImportError("scikit-image")

    monkeypatch.setattr(testbed, "generate_scenes", missing)
    first, second, note = drawn(13, 0)
    assert not {s.id for s in first.samples} & {s.id for s in second.samples}
    assert "leave them out" in note


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "fastv"], "gsearch, psigmoid, vtw"),
        (["--method", "psigmoid"], "--keep"),
        (["--keep", "0.5"], "--keep"),
        (["--out", "plan.txt"], ".json"),
        (["--data", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_mistakes_are_named(words, says):
    done = invoke("search", "/nowhere", *words)
    assert done.exit_code == 2 and says in done.stderr
