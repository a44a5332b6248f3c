"""The command line: ``foveate COMMAND``. One file per command; torch and transformers are imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from ..errors import FoveateError
from .advise import advise
from .bench import app as bench
from .catalogue import families, method, methods
from .demo import demo
from .flops import flops
from .new import new
from .report import report
from .run import run
from .search import search
from .serve import serve
from .testbed import app as testbed
from .tools import complain


class _Group(TyperGroup):
    """Shows the library's own errors as a block that says what to try, without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except FoveateError as error:
            complain(error)
            raise typer.Exit(2) from None


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version.")
    ] = False,
) -> None:
    """Compress the visual tokens of vision-language models, on unmodified transformers."""


for command in (demo, methods, method, families, run, flops, search, advise, report, serve, new):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(testbed, name="testbed")


def main() -> None:
    """Entry point of the ``foveate`` command."""
    app()
