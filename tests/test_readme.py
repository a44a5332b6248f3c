"""The README: its script runs as printed, and what it tells people to type exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from foveate import Plan
from foveate.budget import Budget
from foveate.testbed import model_path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def has_weights() -> bool:
    try:
        return model_path().exists()
    except FileNotFoundError:
        return False


def test_the_script_is_short_and_stock():
    (script,) = blocks("python")
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 12
    assert (
        "AutoModelForImageTextToText.from_pretrained(path)" in script
        and "AutoProcessor.from_pretrained(path)" in script
    )
    ours = [line for line in lines if re.search(r"foveate\.compress|run\.", line)]
    assert len(ours) == 2, "two lines of ours between stock ones"


def test_the_script_runs_as_printed(tmp_path):
    """With the shipped weights; in a checkout without them, with an untrained model of the same shape."""
    environment = dict(os.environ)
    if not has_weights():
        from foveate.testbed.model import build_model
        from foveate.testbed.text import build_processor

        build_model().save_pretrained(tmp_path / "model")
        build_processor().save_pretrained(tmp_path / "model")
        environment["FOVEATE_TESTBED"] = str(tmp_path / "model")
    (script,) = blocks("python")
    path = tmp_path / "readme.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "576 -> 64 (divprune" in done.stdout


def commands(text: str) -> list[list[str]]:
    """What a page tells people to type, as words, without comments."""
    lines = [line.split("#")[0] for block in blocks("bash", text) for line in block.splitlines()]
    lines += re.findall(r"`((?:foveate|make) [^`]*)`", text)
    return [line.split() for line in lines if line.split()[:1] in (["foveate"], ["make"])]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_named_on_a_page_exist(page):
    import typer

    from foveate.cli import app

    root = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands(page.read_text()):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
            continue
        command, rest = root, words[1:]
        while rest and hasattr(command, "commands"):
            if rest[0].startswith("-") or rest[0].isupper():
                break
            assert rest[0] in command.commands, f"no such command: {' '.join(words)}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for param in command.params for option in param.opts} | {"--help", "--version"}
        used = {word for word in rest if word.startswith("--")}
        assert used <= known, f"no such option: {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_on_a_page_can_be_read(page):
    text = page.read_text()
    for block in blocks("python", text):
        compile(block, str(page), "exec")
    for budget in re.findall(r'keep=("[^"]*"|[\d./ ]+?)[,)]', "".join(blocks("python", text))):
        Budget.parse(eval(budget))  # a literal, or 1 / 9
    for plan in re.findall(r"^[a-z]+:keep=.*$", "\n".join(blocks("text", text)), flags=re.MULTILINE):
        Plan.of(plan)


def test_the_places_of_generated_tables_are_there():
    for name in ("methods", "families", "testbed-table"):
        assert README.count(f"<!-- {name}:start -->") == README.count(f"<!-- {name}:end -->") == 1
