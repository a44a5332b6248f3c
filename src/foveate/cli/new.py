"""``foveate new``: a method file and its test to start from, in this checkout or as a plug-in package of its own."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

METHOD = Template('''"""$title: what it keeps, why that works, and what is odd about it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

$imports


@dataclass(frozen=True)
class $cls(ScoreMethod):
    """Keep the tokens that differ most from the picture's mean token.

    Attributes:
        largest: False keeps the most usual tokens instead.
    """

    card = Card(
        name="$name",
        # With a paper: its full title, and paper="arXiv:...", code="https://...", licence="...", differences=("...",).
        title="$title (baseline)",
        mechanism="similarity",
    )

    largest: bool = True

    def score(self, view: View) -> Tensor:
        x = view.x.float()  # (n, d)
        distance = (x - x.mean(0)).square().sum(-1)  # (n,)
        return distance if self.largest else -distance
''')

TEST = Template('''"""$name, on a case small enough to check by hand."""

import torch

from foveate import View
$imports


def test_the_odd_token_stays():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert $cls()(View(x, k=1)).anchor.tolist() == [2]


def test_the_usual_tokens_stay():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert $cls(largest=False)(View(x, k=3)).anchor.tolist() == [0, 1, 3]
''')

PROJECT = Template("""[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "foveate-$dashed"
version = "0.1.0"
description = "The method $name for Foveate"
requires-python = ">=3.10"
dependencies = ["foveate"]

[project.entry-points."foveate.methods"]
$name = "foveate_$name:$cls"

[tool.setuptools]
package-dir = {"" = "src"}
py-modules = ["foveate_$name"]

[tool.pytest.ini_options]
testpaths = ["tests"]
""")


def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and _; also what plans will say.")],
    package: Annotated[
        Path | None, typer.Option(help="Write an installable plug-in package here instead of into Foveate's checkout.")
    ] = None,
) -> None:
    """Start a new method: its file and its test. Nothing that exists is overwritten."""
    files = new_files(name, package)
    write(files)
    for path in files:
        typer.echo(f"wrote {path}")
    if package is None:
        typer.echo(f"next   edit the score, then: pytest {list(files)[1]}")
    else:
        typer.echo(f"next   edit the score, then: pip install -e {package} && pytest {package}")
        typer.echo(f"       `foveate method {name}` shows it once it is installed")


def new_files(name: str, package: Path | None) -> dict[Path, str]:
    """Paths and texts of a new method.

    Raises:
        PlanError: if the name cannot be a method's, or is taken.
        UnsupportedError: if there is no checkout to write to.
    """
    from .. import registry
    from ..errors import PlanError

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise PlanError(f"{name!r} cannot name a method", hint="lower-case letters, digits and _, such as my_method")
    if name in registry.classes():
        raise PlanError(f"there is a method {name!r} already", hint=f"`foveate method {name}` shows it")
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
    }
    if package is not None:
        method, test = "from foveate import Card, ScoreMethod, View", f"from foveate_{name} import {words['cls']}"
        return {
            package / "src" / f"foveate_{name}.py": METHOD.substitute(words, imports=method),
            package / "tests" / f"test_{name}.py": TEST.substitute(words, imports=test),
            package / "pyproject.toml": PROJECT.substitute(words),
        }
    root = _checkout()
    method = "from ..method import Card, ScoreMethod\nfrom ..tokens import View"
    test = f"from foveate.methods.{name} import {words['cls']}"
    return {
        root / "src" / "foveate" / "methods" / f"{name}.py": METHOD.substitute(words, imports=method),
        root / "tests" / "methods" / f"test_{name}.py": TEST.substitute(words, imports=test),
    }


def write(files: dict[Path, str]) -> None:
    """Write new files, all or none.

    Raises:
        PlanError: if one exists.
    """
    from ..errors import PlanError

    for path in files:
        if path.exists():
            raise PlanError(f"{path} exists", hint="another name, another --package, or remove it first")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _checkout() -> Path:
    """The root of the checkout that this Foveate runs from."""
    from ..errors import UnsupportedError

    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    if package.parent.name != "src" or not (root / "tests").is_dir():
        raise UnsupportedError(
            "this Foveate is installed, not a checkout: there is no place for a new method in it",
            where=str(package),
            hint="--package FOLDER writes a plug-in package, which any Foveate finds once it is installed",
        )
    return root
