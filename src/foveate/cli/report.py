"""``foveate report``: result files as one page, with charts beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .tools import load_testbed


def report(
    results: Annotated[list[Path], typer.Argument(help="Files that `foveate bench` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the page and its charts.")] = Path("report"),
    keep: Annotated[str, typer.Option(help="Budget that tables show first; default: the middle one.")] = "",
    pictures: Annotated[int, typer.Option(min=0, help="Samples whose kept tokens are drawn; loads the testbed.")] = 0,
    plots: Annotated[bool, typer.Option(help="Charts as PNG files, too; takes matplotlib.")] = True,
    table: Annotated[
        Path | None, typer.Option(help="Also put the first grid's tables between their marks in this Markdown file.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of the testbed: cpu, cuda, ...")] = "cpu",
) -> None:
    """One page out of result files: accuracy, tokens, time, slices; with intervals, and readable anywhere.

    Files that hold parts of the same grid become one; every other file becomes a section of its own.
    """
    from ..bench.report.report import gather, write
    from ..bench.table import GRID_END, GRID_START, overview, replaced
    from ..errors import UnsupportedError

    if table is not None:
        grids = [source.result for source in gather(results) if source.kind == "grid"]
        if not grids:
            raise UnsupportedError("--table needs a result of `foveate bench`", where=str(results[0]))
        table.write_text(replaced(table.read_text(), overview(grids[0]), GRID_START, GRID_END))
    done = write(results, out, keep=keep, pictures=pictures, load=lambda: load_testbed(device), plots=plots)
    for note in done.notes:
        typer.echo(note, err=True)
    typer.echo(f"{done.page}" + (f" and {len(done.plots)} charts" if done.plots else ""))
