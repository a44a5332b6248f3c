"""`foveate advise`: from samples in a file to a plan that `foveate run` reads, or to a no; and what people see."""

import json
import sys

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import tiny
from bench import stub
from foveate.cli import _Group
from foveate.cli.advise import advise
from foveate.plan import Plan

app = typer.Typer(cls=_Group, callback=lambda: None)
app.command()(advise)


def invoke(*words):
    return CliRunner().invoke(app, ["advise", *(str(word) for word in words)])


@pytest.fixture
def stand_in(monkeypatch):
    """A tiny model, and its questions in place of the testbed's."""
    model = tiny.build("llava")
    task = stub.task(model)
    task = type(task)("stub", list(task.samples) * 10, task.inputs, task.correct, "a stub")
    monkeypatch.setattr(sys.modules["foveate.cli.advise"], "load", lambda *a: (model, stub.Processor()))
    monkeypatch.setattr("foveate.bench.advice.data.testbed_task", lambda: task)
    return task


QUICK = ("--rounds", 1, "--max-new-tokens", 2, "--block", 12, "--batch", 6)


def test_a_plan_is_recommended_and_saved(stand_in, tmp_path):
    words = ("testbed", "--data", "testbed", "--tokens", "<=9/image", "--max-drop", "60pt", "--methods", "norm,random")
    done = invoke(*words, "--keeps", "9,18", "--save", tmp_path / "plans" / "one.json", *QUICK)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    for part in (
        "of 60 asked (stub)",
        "drop at most 60 points; visual tokens at most 9/image",
        "36 visual tokens per image",
        "recommended",
        "18 tokens on",
        "2 plans that were asked",
        "with a probability of 95 %",
        "slice that loses most",
        "Use ",
        "one.json",
    ):
        assert part in text, part
    saved = Plan.load(tmp_path / "plans" / "one.json")
    assert str(saved) in ("norm:keep=9/image", "random:keep=9/image") and f"Use {saved}" in text


def test_no_is_an_answer_with_its_own_exit_status(stand_in, tmp_path):
    words = ("testbed", "--data", "testbed", "--tokens", "<=2/image", "--max-drop", "1pt", "--plans", "norm:keep=9")
    done = invoke(*words, "--save", tmp_path / "one.json", *QUICK)
    assert done.exit_code == 1, done.output
    assert "Do not compress: no plan comes to at most 2/image" in " ".join(done.stdout.split())
    assert not (tmp_path / "one.json").exists()


def test_plain_data(stand_in):
    words = ("testbed", "--data", "testbed", "--tokens", "<=0.25", "--score", "agreement", "--limit", 12)
    done = invoke(*words, "--plans", "norm:keep=9; norm:keep=4", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"]["name"] == "testbed" and found["measure"] == "changed answers" and found["saved"] is None
    assert found["protocol"]["samples_asked"] == 12 and {row["n"] for row in found["rows"]} == {12}
    assert {"foveate", "torch", "threads", "dtype"} <= set(found["environment"])
    assert found["rows"][0]["first_token"]["rounds"] == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The testbed's architecture, untrained."""
    from foveate.testbed.model import build_model
    from foveate.testbed.text import build_processor

    path = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


def test_samples_of_a_file_through_the_models_own_chat_format(folder, tmp_path):
    colours = ("red", "blue", "green", "white")
    for colour in colours:
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{colour}.png")
    rows = [{"image": f"{c}.png", "question": "what color is the circle", "slice": c} for c in colours]
    rows[0]["image"] = ["red.png", "blue.png"]
    rows[1]["history"] = [["how many circles are there", "2"]]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (folder, "--data", tmp_path / "samples.jsonl", "--tokens", "<=64/image", "--max-drop", "1pt")
    done = invoke(*words, "--plans", "stride:keep=64", "--rounds", 1, "--max-new-tokens", 2, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["protocol"]["score"] == "agreement"
    (row,) = found["rows"]
    assert row["n"] == 4 and row["tokens_per_image"] == 64 and row["verdict"] in ("undecided", "refused")
    assert set(row["slices"]) == set(colours) and found["task"] == "samples.jsonl"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--max-drop 1pt"),
        (("--max-drop", "1"), "0.5pt"),
        (("--ttft", "fast"), "200ms"),
        (("--max-drop", "1pt", "--save", "plan.txt"), ".json"),
        (("--max-drop", "1pt", "--plans", "norm:keep=9", "--keeps", "9"), "--methods"),
        (("--max-drop", "1pt", "--methods", "nrom"), "norm"),
        (("--max-drop", "1pt", "--keeps", "0"), "keep=0"),
        (("--max-drop", "1pt", "--score", "wer"), "exact, contains, agreement"),
        (("--max-drop", "1pt", "--data", "/nowhere.jsonl"), "/nowhere.jsonl"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(words, says):
    done = invoke("/nowhere", "--data", "testbed", *words)
    assert done.exit_code == 2 and says in done.stderr
