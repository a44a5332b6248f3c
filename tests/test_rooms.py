"""The rooms: who may import whom, what stays light, what every method must bring, and that generated files are fresh."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import foveate
import tiny
from foveate import Method, registry
from foveate.cli.catalogue import options_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "foveate"

# A room is a file or a folder of the package. What it may import besides itself:
WAIST = {"tokens", "entries", "routes", "budget", "errors"}
MAY_IMPORT = {
    "errors": set(),
    "tokens": {"errors"},
    "entries": {"tokens", "errors"},
    "routes": {"errors"},
    "budget": {"errors"},
    "parts": WAIST,
    "modules": WAIST,
    "method": WAIST | {"parts"},
    "methods": WAIST | {"method", "parts", "modules"},
    "registry": {"method", "methods", "errors"},
    "plan": {"registry", "method", "budget", "errors"},
    "report": WAIST,
    "families": WAIST,
    "stages": WAIST | {"families", "parts", "plan", "method"},
    "summary": WAIST | {"plan", "stages", "families", "report"},
    "attach": WAIST | {"plan", "method", "stages", "families", "report", "summary"},
}
# What is built on the core uses its public names; nothing in the core looks back.
PUBLIC = WAIST | {"__init__", "attach", "families", "method", "plan", "registry", "report"}
MAY_IMPORT |= {
    "lens": PUBLIC,
    "testbed": PUBLIC,
    "train": PUBLIC | {"modules", "testbed"},
    "bench": PUBLIC | {"lens", "testbed", "stages"},  # its FLOPs counter reads sizes by the taps of the stages
    "serving": PUBLIC,
    "harness": PUBLIC | {"bench", "testbed"},
    "cli": PUBLIC | {"lens", "testbed", "bench", "train", "serving", "harness"},
}
LINES = 400
LONGER = {  # file: why it is not split
    "testbed/scenes.py": "every kind of picture, side by side",
    "testbed/training.py": "one training run, read from top to bottom",
}

FILES = sorted(PACKAGE.rglob("*.py"))
OWN = {name: cls for name, cls in registry.classes().items() if cls.__module__.startswith("foveate.methods.")}


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in the file it does so."""
    found = set()
    here = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == "foveate"]
            found |= {name[1] if len(name) > 1 else "__init__" for name in names}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = ["foveate", *here[: len(here) - node.level], *module]
            if module[0] != "foveate":
                continue
            for name in [module[1]] if len(module) > 1 else [alias.name for alias in node.names]:
                found.add(name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists() else "__init__")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # names for type checkers, and everything lazily
    assert room in MAY_IMPORT, f"{room} is a new room: say here what it may import"
    assert imported(path) - {room} <= MAY_IMPORT[room]


def test_the_import_rules_see_what_they_should():
    assert {"errors", "families", "plan", "report", "stages", "summary"} <= imported(PACKAGE / "attach.py")
    assert "bench" in imported(PACKAGE / "cli" / "bench.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_for_and_is_short(path):
    name, text = str(path.relative_to(PACKAGE)), path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring at the top of the file"
    assert text.count("\n") <= LINES or name in LONGER, f"more than {LINES} lines: split it, or say why not in LONGER"


def test_reasons_for_long_files_are_still_needed():
    assert not [name for name in LONGER if (PACKAGE / name).read_text().count("\n") <= LINES]


@pytest.mark.parametrize(
    "code",
    [
        "import foveate",
        "import foveate.errors, foveate.budget",
        "import foveate.testbed",
        "import sys; sys.argv = ['foveate', '--help']\nfrom foveate.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["foveate", "errors and budget", "testbed", "help"],
)
def test_light_imports_stay_light(code):
    after = "\nimport sys; print('loaded:', *sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + after], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_every_public_name_can_be_loaded():
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None


def test_only_families_know_a_models_name():
    words = set(tiny.FAMILIES) | {tiny._FAMILIES[n].cls.removesuffix("ForConditionalGeneration") for n in tiny.FAMILIES}
    words = {word.lower().replace("_", "") for word in words}
    for path in [*(PACKAGE / "methods").glob("*.py"), *(PACKAGE / "parts").glob("*.py")]:
        for text in code_words(ast.parse(path.read_text())):
            plain = text.lower().replace("_", "").replace("-", "")
            assert not [word for word in words if word in plain], f"{path.name} names a model family: {text!r}"


def code_words(node: ast.AST):
    """Names and strings of a file; prose (docstrings, and what a card says) is left out."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Card":
        return
    for field in ("id", "attr", "name", "arg", "module", "value"):
        if isinstance(word := getattr(node, field, None), str):
            yield word
    for child in ast.iter_child_nodes(node):
        yield from code_words(child)


@pytest.mark.parametrize("name", OWN)
def test_a_method_has_a_complete_card_and_a_test(name):
    cls = OWN[name]
    card = cls.card
    assert card.title and card.stages and card.modality
    if card.paper:
        assert card.paper.startswith(("arXiv:", "https://")), "a paper is arXiv:NUMBER or an address"
        assert card.differences, "say where this departs from the paper, or that it does not"
        assert not card.licence or card.code
    else:
        assert card.title.endswith("(baseline)"), "a method without a paper is a baseline, and its title says so"
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "the class has no docstring"
    for option in options_of(cls):
        assert option["meaning"], f"option {option['name']!r} is not explained under Attributes"
    if issubclass(cls, Method):
        given = [field for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]
        assert not given, "every option has a default"
    assert (ROOT / "tests" / "methods" / f"test_{name}.py").exists()


def test_generated_files_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen_docs.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
