"""`foveate bench`: from the command to its result, on a tiny stand-in for the shipped model, and once in two processes."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import tiny
from bench import stub
from foveate.cli import app
from foveate.cli import grid as command


def invoke(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.fixture
def stand_in(monkeypatch):
    model = tiny.build("llava")
    task = stub.task(model)

    def some(slices=None, limit=None):
        return replace(task, samples=[s for s in task.samples if slices is None or s.slice in slices])

    monkeypatch.setattr(command, "load", lambda *a: (model, stub.Processor()))
    monkeypatch.setattr("foveate.bench.tasks.testbed_task", some)
    return task


def test_a_grid_is_written_and_goes_on_where_it_stopped(stand_in, tmp_path):
    out = tmp_path / "deep" / "one.json"
    asked = ("--methods", "norm", "--keep", "9,50%", "--seeds", 2, "--batch", 4, "--rounds", 0, "--results", out)
    done = invoke(*asked)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["bench"] == "grid" and result["samples"] and len(result["rows"]) == 1 + 2 * (2 + 3 + 1)
    assert result["command"] == "foveate bench --methods norm --keep 9,50% --seeds 2 --batch 4 --rounds 0"
    assert result["protocol"]["keeps"] == ["9", "50%"] and "norm:keep=9/image" in done.stdout
    ledger = command.ledger_of(out)
    before = ledger.read_text()
    again = invoke(*asked, "--json")
    assert json.loads(again.stdout) == result and ledger.read_text() == before, "nothing was left to measure"


def test_the_page_comes_along(stand_in, tmp_path):
    out, page = tmp_path / "one.json", tmp_path / "page"
    done = invoke("--methods", "norm", "--keep", "9,18", "--rounds", 0, "--results", out, "--report", page)
    assert done.exit_code == 0, done.output
    html = (page / "index.html").read_text()
    assert "norm" in html and json.loads(out.read_text())["identity"] in html and "--report" not in html
    assert str(page / "index.html") in done.stderr


def test_the_tables_go_between_their_marks(stand_in, tmp_path):
    out, notes = tmp_path / "one.json", tmp_path / "notes.md"
    invoke("--methods", "norm,fastv,ima", "--keep", "9,18", "--rounds", 0, "--results", out)
    notes.write_text("# Mine\n<!-- grid-table:start -->\nold\n<!-- grid-table:end -->\nrest\n")
    done = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "page"), "--table", str(notes)])
    assert done.exit_code == 0, done.output
    text = notes.read_text()
    assert text.startswith("# Mine\n") and text.endswith("\nrest\n") and "old" not in text
    before, between = text.split("## Between its layers")
    assert "| norm | " in before and "| random | " in before and "seed" not in before
    assert "| fastv | " in between and "With a schedule of their own: ima " in between


def test_parts_name_themselves_and_flags_override_a_preset(stand_in, tmp_path):
    out = tmp_path / "part.json"
    asked = ("--preset", "quick", "--methods", "norm", "--keep", 9, "--slices", "one", "--batch", 1, "--rounds", 0)
    done = invoke(*asked, "--shard", "2/3", "--results", out)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["protocol"]["shard"] == [2, 3] and result["protocol"]["methods"] == ["norm"]
    assert {sample["slice"] for sample in result["samples"]} == {"one"} and len(result["samples"]) == 1
    assert "--shard" not in result["command"]


def test_several_models_are_one_file(stand_in, tmp_path):
    out = tmp_path / "two.json"
    done = invoke(
        "--methods", "norm", "--keep", 9, "--rounds", 0, "--model", "here/a", "--model", "b", "--results", out
    )
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert [part["model"]["name"] for part in result["parts"]] == ["here/a", "b"]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["two-a.ledger.jsonl", "two-b.ledger.jsonl"]
    done = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "page"), "--no-plots"])
    html = (tmp_path / "page" / "index.html").read_text()
    assert done.exit_code == 0 and "here/a" in html


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", 1], "nothing is asked for"),
        (["--preset", "slow"], "quick, full"),
        (["--methods", "nrom"], "norm"),
        (["--methods", "norm", "--shard", "1/2", "--jobs", 2], "one of them"),
        (["--methods", "norm", "--shard", "4/3"], "no part 4 of 3"),
        (["--methods", "norm", "--shard", "half"], "1/4"),
        (["--methods", "norm", "--conditions", "fog"], "fog"),
        (["--methods", "norm", "--keep", "-3"], "keep"),
        (["--methods", "norm", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--plan", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_requests_say_what_to_try(stand_in, tmp_path, words, told):
    done = invoke(*words, "--results", tmp_path / "x.json")
    assert done.exit_code == 2 and told in done.stderr, done.output
    assert not (tmp_path / "x.json").exists()


def test_nothing_at_all_is_a_question_for_help():
    done = invoke()
    assert "--preset" in done.output and "speed" in done.output


def test_two_processes_make_what_one_makes(tmp_path):
    asked = (
        "--methods",
        "norm",
        "--keep",
        32,
        "--slices",
        "chart,existence",
        "--limit",
        2,
        "--batch",
        2,
        "--rounds",
        0,
    )
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file, jobs in zip(files, (1, 2), strict=True):
        done = invoke(*asked, "--threads", 1, "--jobs", jobs, "--results", file)
        assert done.exit_code == 0, done.output
    assert files[0].read_text() == files[1].read_text()
    assert not list(tmp_path.glob("two.*of2.json"))
