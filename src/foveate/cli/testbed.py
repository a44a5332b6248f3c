"""`foveate testbed`: make pictures and questions, train the shipped model again, measure it, hand it to a harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from .tools import progress

app = typer.Typer(help="The shipped small model: make its pictures, train it, measure it.", no_args_is_help=True)


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="zip to write")],
    seed: Annotated[int, typer.Option(min=0, help="0 is the packaged set, anything else gives new samples")] = 1,
    n: Annotated[int, typer.Option(min=1, help="questions per slice")] = 160,
) -> None:
    """Write new pictures with questions and answers."""
    from foveate import testbed

    with progress() as bar:
        task = bar.add_task("slices", total=len(testbed.SLICES))
        testbed.make(out, seed=seed, n=n, tick=lambda _: bar.advance(task))
    typer.echo(f"{out}: {n} questions in each of {len(testbed.SLICES)} slices, {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="folder for checkpoints and the finished model")] = Path("testbed-training"),
    smoke: Annotated[bool, typer.Option("--smoke", help="a short recipe that only shows that it learns")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoints in OUT")] = False,
    hours: Annotated[Optional[float], typer.Option(min=0.01, help="stop after this long; go on with --resume")] = None,  # noqa: UP045
) -> None:
    """Train the testbed from nothing (about 75 minutes on two cores; --smoke about 8)."""
    from foveate.testbed.training import train as run

    if not resume and any(out.glob("*.pt")):
        raise typer.BadParameter(f"{out} holds checkpoints; pass --resume to go on from them, or another --out")
    with progress() as bar:
        tasks = {}

        def tick(stage: str, step: int, steps: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=steps)
            bar.update(tasks[stage], completed=step)

        done = run(out, smoke=smoke, hours=hours, tick=tick)
    typer.echo(f"model: {done}" if done else f"stopped after {hours} h; go on with --resume")


@app.command("eval")
def evaluate(
    model: Annotated[Optional[Path], typer.Option(help="model folder; default: the shipped one")] = None,  # noqa: UP045
    slice: Annotated[Optional[list[str]], typer.Option(help="only this slice (repeatable)")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="questions per slice; default: all")] = None,  # noqa: UP045
    batch: Annotated[int, typer.Option(min=1)] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option()] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="rows as JSON on standard output")] = False,
) -> None:
    """Accuracy per slice on the fixed set, with n, 95 % interval (Wilson) and chance level."""
    from foveate import testbed

    loaded, processor = testbed.load(device, dtype, path=model)
    asked = testbed.samples(slice, limit)
    results = []
    with progress() as bar:
        task = bar.add_task("questions", total=len(asked))
        for result in testbed.answer(loaded, processor, asked, batch=batch):
            results.append(result)
            bar.advance(task)
    rows = testbed.summary(results)
    if as_json:
        typer.echo(json.dumps({"model": str(model or "testbed"), "dtype": dtype, "rows": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("slice", "n", "accuracy", "95 % interval", "chance", title="testbed, uncompressed, greedy")
    for r in rows:
        span = f"{r['low']:.3f} - {r['high']:.3f}"
        table.add_row(r["slice"], str(r["n"]), f"{r['accuracy']:.3f}", span, f"{r['chance']:.2f}")
    Console().print(table)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="folder to write to; it should stay where it is")] = Path("testbed-task"),
    slice: Annotated[Optional[list[str]], typer.Option(help="only this slice (repeatable)")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="questions per slice; default: all")] = None,  # noqa: UP045
) -> None:
    """Write the fixed set as a task of lmms-eval that needs no network: parquet, YAML and its functions."""
    from ..harness import task

    count = task.export(out, slice, limit)
    typer.echo(f"{out}: task {task.NAME}, {count} questions")
    typer.echo(f"python -m lmms_eval eval --model foveate --include_path {out} --tasks {task.NAME} ...", err=True)
