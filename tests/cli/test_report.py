"""`foveate report`: from result files to a folder, and errors that name the file."""

import json

import pytest
import typer
from typer.testing import CliRunner

from bench.test_report import grid
from foveate.cli import _Group
from foveate.cli.report import report


@pytest.fixture
def invoke():
    app = typer.Typer(cls=_Group)
    app.callback()(lambda: None)
    app.command()(report)
    return lambda *words: CliRunner().invoke(app, ["report", *map(str, words)])


def test_a_page_out_of_a_result_file(invoke, tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid()))
    done = invoke(path, "--out", tmp_path / "out", "--no-plots", "--keep", "16")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "out" / "index.html") in done.stdout
    assert "<h1>" in (tmp_path / "out" / "index.html").read_text()


def test_a_file_that_is_no_result_is_named(invoke, tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"rows": []}')
    done = invoke(path, "--out", tmp_path / "out")
    assert done.exit_code == 2 and "other.json" in done.stderr and "try" in done.stderr
    assert not (tmp_path / "out").exists()
