"""``foveate new``: a method file and its test to start from, in this checkout or as a plug-in package of its own."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

SCORE = Template('''"""$title: what it keeps, why that works, and what is odd about it."""

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

SCORE_TEST = Template('''"""$name, on a case small enough to check by hand."""

import torch

$imports


def test_the_odd_token_stays():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert $cls()(View(x, k=1)).anchor.tolist() == [2]


def test_the_usual_tokens_stay():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert $cls(largest=False)(View(x, k=3)).anchor.tolist() == [0, 1, 3]
''')

LAYER = Template('''"""$title: what it keeps, why that works, and what is odd about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

$imports


@dataclass(frozen=True)
class $cls(LayerMethod):
    """Keep the tokens whose states differ most from the picture's mean state, before one layer.

    Attributes:
        layer: the first layer that runs on fewer tokens, or a share of the depth below 1.0.
    """

    card = Card(
        name="$name",
        # With a paper: its full title, and paper="arXiv:...", code="https://...", licence="...", differences=("...",).
        title="$title (baseline)",
        stages=("layers",),
        positions="original",
        mechanism="similarity",
    )

    layer: float = 2

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def __call__(self, view: View) -> Reduction:
        x = view.x.float()  # (n, d)
        distance = (x - x.mean(0)).square().sum(-1)  # (n,)
        return Reduction.drop(top(distance, view.k), view.n)
''')

LAYER_TEST = Template('''"""$name, on a case small enough to check by hand."""

import torch

$imports


def test_the_odd_token_stays():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert $cls()(View(x, k=1, layer=2, depth=8)).anchor.tolist() == [2]


def test_one_stop_before_its_layer():
    assert list($cls().stops(8)) == [2]
    assert list($cls(layer=0.5).stops(8)) == [4]
''')

CACHE = Template('''"""$title: what it keeps, why that works, and what is odd about it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

$imports


@dataclass(frozen=True)
class $cls(CacheMethod):
    """Keep, for each key head, the entries that the last prompt token attends to most, and the latest ones.

    Attributes:
        recent: entries at the end of the prompt that stay in any case.
    """

    card = Card(
        name="$name",
        # With a paper: its full title, and paper="arXiv:...", code="https://...", licence="...", differences=("...",).
        title="$title (baseline)",
        stages=("cache",),
        needs=("window_rows",),
        guidance="question",
        budget="entries",
        touches="all",
        positions="original",
        mechanism="attention",
    )

    recent: int = 1

    def score(self, entries: Entries) -> Tensor:
        return entries.need("window_rows").float().mean(1).sum(1)  # (h, g, q, n) -> (h, n)

    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        assert score is not None
        return Eviction(entries.n, best(score, entries.k, recent=self.recent))
''')

CACHE_TEST = Template('''"""$name, on a case small enough to check by hand."""

import torch

$imports

# Two query heads on one key head, the last of four tokens asks. Mean: 0.2 0.3 0.4 0.1.
ROWS = torch.tensor([[[[0.3, 0.1, 0.5, 0.1]], [[0.1, 0.5, 0.3, 0.1]]]])


def entries(k: int) -> Entries:
    keys, kind, left = torch.zeros(1, 4, 2), torch.full((4,), int(Kind.TEXT)), torch.ones(4, dtype=torch.bool)
    return Entries(keys, keys, kind, torch.arange(4), left, k, extras={"window_rows": Extra(ROWS, 0)})


def test_the_best_stay_and_the_last():
    method = $cls()
    score = method.score(entries(2))
    torch.testing.assert_close(score, torch.tensor([[0.2, 0.3, 0.4, 0.1]]))
    assert method(entries(2), score).kept.tolist() == [[2, 3]]
    assert method(entries(3), score).kept.tolist() == [[1, 2, 3]]


def test_nothing_has_to_stay():
    method = $cls(recent=0)
    assert method(entries(2), method.score(entries(2))).kept.tolist() == [[1, 2]]
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

# By kind: file, test, what the file imports in a checkout and in a package, and what the test imports besides the method.
KINDS = {
    "score": (
        SCORE,
        SCORE_TEST,
        "from ..method import Card, ScoreMethod\nfrom ..tokens import View",
        "from foveate import Card, ScoreMethod, View",
        "from foveate import View",
    ),
    "layer": (
        LAYER,
        LAYER_TEST,
        "from ..method import Card, LayerMethod\nfrom ..parts.pace import before, check_spots\n"
        "from ..parts.select import top\nfrom ..tokens import Reduction, View",
        "from foveate import Card, Reduction, View\nfrom foveate.method import LayerMethod\n"
        "from foveate.parts.pace import before, check_spots\nfrom foveate.parts.select import top",
        "from foveate import View",
    ),
    "cache": (
        CACHE,
        CACHE_TEST,
        "from ..entries import Entries, Eviction\nfrom ..method import CacheMethod, Card\n"
        "from ..parts.entries import best",
        "from foveate import Card\nfrom foveate.entries import Entries, Eviction\n"
        "from foveate.method import CacheMethod\nfrom foveate.parts.entries import best",
        "from foveate.entries import Entries\nfrom foveate.tokens import Extra, Kind",
    ),
}


def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and _; also what plans will say.")],
    package: Annotated[
        Path | None, typer.Option(help="Write an installable plug-in package here instead of into Foveate's checkout.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="score: a number per token, before the language model. layer: between its layers. cache: on its cache."
        ),
    ] = "score",
) -> None:
    """Start a new method: its file and its test. Nothing that exists is overwritten."""
    files = new_files(name, package, kind)
    write(files)
    for path in files:
        typer.echo(f"wrote {path}")
    if package is None:
        typer.echo(f"next   edit the method, then: pytest {list(files)[1]}")
    else:
        typer.echo(f"next   edit the method, then: pip install -e {package} && pytest {package}")
        typer.echo(f"       `foveate method {name}` shows it once it is installed")


def new_files(name: str, package: Path | None, kind: str = "score") -> dict[Path, str]:
    """Paths and texts of a new method, of one of :data:`KINDS`.

    Raises:
        PlanError: if the name cannot be a method's, or is taken, or there is no such kind.
        UnsupportedError: if there is no checkout to write to.
    """
    from .. import registry
    from ..errors import PlanError

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise PlanError(f"{name!r} cannot name a method", hint="lower-case letters, digits and _, such as my_method")
    if name in registry.classes():
        raise PlanError(f"there is a method {name!r} already", hint=f"`foveate method {name}` shows it")
    if kind not in KINDS:
        raise PlanError(f"{kind!r} is no kind of method to start from", hint=", ".join(KINDS))
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
    }
    text, check, near, far, tested = KINDS[kind]
    module = f"foveate.methods.{name}" if package is None else f"foveate_{name}"
    test = "\n".join(sorted([*tested.split("\n"), f"from {module} import {words['cls']}"]))
    if package is not None:
        return {
            package / "src" / f"foveate_{name}.py": text.substitute(words, imports=far),
            package / "tests" / f"test_{name}.py": check.substitute(words, imports=test),
            package / "pyproject.toml": PROJECT.substitute(words),
        }
    root = _checkout()
    return {
        root / "src" / "foveate" / "methods" / f"{name}.py": text.substitute(words, imports=near),
        root / "tests" / "methods" / f"test_{name}.py": check.substitute(words, imports=test),
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
