"""``foveate demo``: the shipped model, its pictures, a dozen methods; a table, pictures and a page."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .tools import load_testbed, names_of, progress, screen


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer questions, one timed round.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per slice; default 12, quick 3.")] = None,
    methods: Annotated[str, typer.Option(help="Names, with commas, or all; default: a dozen.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """See it work: accuracy, tokens, time, and pictures of what was kept, on the shipped model."""
    begun = time.perf_counter()
    model, processor = load_testbed(device)
    from .. import registry
    from ..bench.demo import METHODS, steps
    from ..bench.demo import demo as measure
    from ..bench.page import page
    from ..bench.tasks import testbed_task

    names = list(registry.classes()) if methods == "all" else names_of(methods) or list(METHODS)
    for name in names:
        registry.get(name)
    task = testbed_task(limit=limit or (3 if quick else 12))
    repeats, batch = (1 if quick else 5), 16
    console = screen()
    asked = f"{len(task.samples)} questions in {len(task.slices())} slices"
    console.print(f"{asked}, {len(names)} methods at 1/3 and 1/9 of 576 tokens")
    with progress() as bars:
        answers, times = steps(task, names, repeats, batch)
        tasks = {"answers": bars.add_task("answers", total=answers), "times": bars.add_task("times", total=times)}
        result, figures = measure(
            model,
            processor,
            task,
            methods=names,
            repeats=repeats,
            batch=batch,
            tick=lambda what: bars.advance(tasks[what]),
        )
        for task_id in tasks.values():  # plans that the model refuses are not timed
            bars.update(task_id, completed=bars.tasks[task_id].total)
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        figure.drawn().save(out / f"{figure.slice}.png")
    (out / "index.html").write_text(page(result, figures))
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    _show(result, console)
    console.print(f"{result['note']}")
    console.print(f"{len(figures)} pictures and the page {out / 'index.html'} in {time.perf_counter() - begun:.0f} s")


def _show(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    table = Table(
        "method", "share", "tokens per image", "accuracy", "95 % interval", "prefill", "choosing", "first token"
    )
    for row in result["rows"]:
        cells = [row["method"], row["share"]]
        if "error" in row:
            table.add_row(*cells, "", "refused", row["error"].splitlines()[0])
            continue
        cells += [f"{row['tokens_per_image']:.0f}", f"{row['accuracy']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}"]
        cells += [f"{row['time'][name]:.3f}" for name in ("prefill", "choosing", "first_token")]
        table.add_row(*cells)
    console.print(table)
    console.print("prefill, choosing, first token: ratios to uncompressed, taken in turns in this run")
