"""Help is fast and light; errors are one block, not a traceback."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from foveate.cli import app
from foveate.cli.tools import keep_of

COMMANDS = ["demo", "methods", "method", "families", "run", "new", "bench speed", "bench table", "testbed train"]


def invoke(*words):
    return CliRunner().invoke(app, words)


def test_help_imports_neither_torch_nor_transformers_nor_numpy():
    code = (
        "import sys, runpy; sys.argv = ['foveate', '--help']\n"
        "try: runpy.run_module('foveate.cli', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no processor time of child processes")
def test_help_is_fast():
    """Under a second; in processor time, because a busy test machine says nothing about the command."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "foveate.cli", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert done.output.count("\n") > 5


def test_version():
    import foveate

    assert invoke("--version").output.strip() == f"foveate {foveate.__version__}"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("64", 64), ("1.0", 1.0), ("25%", "25%"), ("64/image", "64/image"), ("=128/image", "=128/image")],
)
def test_keep_is_read_as_python_would(text, value):
    assert keep_of(text) == value and type(keep_of(text)) is type(value)


def test_library_errors_are_one_block_and_status_two():
    done = invoke("method", "divprnue")
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error == "error  no method named 'divprnue'" and hint.startswith("try    divprune")
    assert "Traceback" not in done.output
