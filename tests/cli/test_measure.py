"""`foveate demo` and `foveate bench`: from the command to its files, on a tiny stand-in for the shipped model."""

import json
import sys

import pytest
from typer.testing import CliRunner

import tiny
from bench import stub
from foveate import testbed
from foveate.cli import app


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def stand_in(monkeypatch):
    """A tiny model in place of the shipped one, and its questions in place of the testbed's."""
    model = tiny.build("llava")
    task = stub.task(model)
    for name in ("demo", "bench"):
        monkeypatch.setattr(sys.modules[f"foveate.cli.{name}"], "load_testbed", lambda *a: (model, stub.Processor()))
    monkeypatch.setattr("foveate.bench.tasks.testbed_task", lambda *a, **k: task)
    monkeypatch.setattr("foveate.bench.table.testbed_task", lambda *a, **k: task)
    monkeypatch.setattr("foveate.bench.demo.KEEPS", {12: "1/3", 4: "1/9"})
    return task


def test_demo_writes_page_pictures_and_numbers(stand_in, tmp_path):
    done = invoke("demo", "--out", tmp_path / "demo", "--quick", "--methods", "random,norm")
    assert done.exit_code == 0, done.output
    files = sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert files == ["index.html", "one.png", "result.json", "two.png"]
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["uncompressed", "random", "random", "norm", "norm"]
    assert "1/9" in done.stdout and "random" in done.stdout


def test_demo_refuses_unknown_methods_first(stand_in, tmp_path):
    done = invoke("demo", "--out", tmp_path / "demo", "--methods", "nrom")
    assert done.exit_code == 2 and "norm" in done.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("command", ["demo", "bench table", "run testbed --image {} --ask x --method norm --keep 9"])
def test_without_weights_the_error_names_the_command_that_makes_them(command, monkeypatch, tmp_path):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr(testbed, "model_path", missing)
    picture = tmp_path / "a.png"
    stub.noise(0).save(picture)
    done = invoke(*command.format(picture).split())
    assert done.exit_code == 2 and "foveate testbed train" in done.stderr


def test_table_writes_the_readme_and_the_numbers(stand_in, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- testbed-table:start -->\nold\n<!-- testbed-table:end -->\nrest\n")
    numbers = tmp_path / "results" / "testbed.json"
    done = invoke("bench", "table", "--write", readme, "--results", numbers, "--methods", "norm", "--keep", "9,4")
    assert done.exit_code == 0, done.output
    text = readme.read_text()
    assert "old" not in text and "| method | 9 | 4 |" in text and text.endswith("<!-- testbed-table:end -->\nrest\n")
    assert len(json.loads(numbers.read_text())["rows"]) == 3
    assert "| method | 9 | 4 |" in done.stdout


SPEED = ("bench", "speed", "--layers", 1, "--width", 64, "--tokens", 576, "--text", 8, "--keep", 0.1, "--repeats", 1)


def test_speed_prints_tables_and_ends_with_one_line_of_data():
    done = invoke(*SPEED, "--methods", "norm")
    assert done.exit_code == 0, done.output
    lines = done.stdout.strip().splitlines()
    assert json.loads(lines[-1])["bench"] == "speed"
    assert any("efficiency" in line for line in lines)
    only = invoke(*SPEED, "--methods", "norm", "--json")
    assert len(only.stdout.strip().splitlines()) == 1


@pytest.mark.parametrize(("option", "says"), [("--tokens 100", "576"), ("--width 100", "64"), ("--keep x", "numbers")])
def test_speed_refuses_what_it_cannot_build(option, says):
    done = invoke("bench", "speed", *option.split())
    assert done.exit_code == 2 and says in done.stderr
