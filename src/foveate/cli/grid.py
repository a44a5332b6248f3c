"""``foveate bench`` without a subcommand: the grid of methods, budgets and conditions, resumable, in parts if asked for."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .tools import command_of, keep_of, load, names_of, plan_of, progress, screen

if TYPE_CHECKING:
    from ..bench.tasks import Task


def grid(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="quick (minutes) or full (all methods); flags override it.")] = "",
    model: Annotated[list[str] | None, typer.Option(help="A folder, a hub id or testbed; may be repeated.")] = None,
    data: Annotated[str, typer.Option(help="testbed, or a JSONL or parquet file.")] = "testbed",
    methods: Annotated[str, typer.Option(help="Names, with commas, or all.")] = "",
    plan: Annotated[list[str] | None, typer.Option(help="A whole plan, or its file, besides; may be repeated.")] = None,
    keep: Annotated[str, typer.Option(help="Budgets, with commas: tokens per image, shares.")] = "",
    slices: Annotated[str, typer.Option(help="Names, with commas; default: all.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Questions per slice.")] = None,
    conditions: Annotated[str, typer.Option(help="Degraded pictures: blur, noise, jpeg, dark, blur-2, ..., all.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Of the random baseline.")] = 3,
    once: Annotated[bool, typer.Option(help="Also ask later turns with tokens chosen at the first turn.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 10,
    rounds: Annotated[int | None, typer.Option(min=0, help="Timed rounds; 0 leaves times out.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: only this part of the questions; foveate report joins parts.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the questions.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch in each.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto: as the weights are.")] = "auto",
    results: Annotated[Path | None, typer.Option(help="The result; default results/PRESET.json.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write the page of `foveate report` into this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, no table.")] = False,
) -> None:
    """Measure: accuracy and time of methods against the uncompressed model, with intervals."""
    if context.invoked_subcommand is not None:
        return
    from ..bench.grid.grid import PRESETS
    from ..errors import UnsupportedError

    if preset and preset not in PRESETS:
        raise UnsupportedError(f"there is no preset {preset!r}", hint=", ".join(PRESETS))
    if not (preset or methods or plan):
        raise UnsupportedError("nothing is asked for", hint="--preset quick, --methods divprune,dart, --plan ...")
    part = part_of(shard)
    if part[1] > 1 and jobs > 1:
        raise UnsupportedError("--shard and --jobs both cut the questions into parts", hint="one of them")
    usual = PRESETS[preset or "full"]
    every = methods == "all" or not (methods or usual.methods or plan)
    asked: dict[str, Any] = {
        "methods": None if every else names_of(methods) or list(usual.methods),
        "keeps": [keep_of(text) for text in names_of(keep)] or list(usual.keeps),
        "plans": [plan_of(text) for text in plan or []],
        "conditions": names_of(conditions), "seeds": seeds, "once": once, "batch": batch,
        "max_new_tokens": max_new_tokens, "shard": part,
    }  # fmt: skip
    kinds = names_of(slices) or None, usual.limit if limit is None else limit
    timed = usual.rounds if rounds is None else rounds
    out, names = results or Path("results") / f"{preset or 'bench'}.json", model or ["testbed"]
    said = command_of("foveate bench", context, leave=LEFT_OUT)
    found = []
    for name in names:
        where = out if len(names) == 1 else out.with_stem(f"{out.stem}-{Path(name).name}")
        found.append(_measured(context, name, data, kinds, asked, where, said, jobs, threads, timed, device, dtype))
    out.parent.mkdir(parents=True, exist_ok=True)
    result = found[0] if len(found) == 1 else {"bench": "grids", "schema": 1, "parts": found}
    out.write_text(json.dumps(result, separators=(",", ":")) + "\n")  # answers of all plans: not for reading
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for one in found:
            _show(one)
    if report is None:
        typer.echo(f"wrote {out}; `foveate report {out}` makes a page of it", err=True)
    else:
        from ..bench.report.report import write

        typer.echo(f"wrote {out} and {write([out], report).page}", err=True)


LEFT_OUT = (
    "results",
    "report",
    "as_json",
    "jobs",
    "threads",
    "shard",
)  # of the command that is noted: they change no number


def part_of(text: str) -> tuple[int, int]:
    """``--shard``: "2/4" is (2, 4); "" is all of it."""
    first, slash, last = (text or "1/1").partition("/")
    try:
        return int(first), int(last if slash else "x")
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: two numbers with a slash, such as 1/4") from error


def _measured(
    context: typer.Context, name: str, data: str, kinds: tuple[list[str] | None, int | None], asked: dict[str, Any],
    where: Path, said: str, jobs: int, threads: int | None, rounds: int, device: str, dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """One model's grid."""
    import torch

    from ..bench.grid.grid import Grid, with_times
    from ..bench.grid.ledger import Ledger
    from ..bench.grid.results import merge

    if threads is not None or jobs > 1:
        torch.set_num_threads(threads or 1)  # as the parts have
    found, processor = load(name, device, dtype)
    grid = Grid(found, processor, _task(data, *kinds), name=name, **asked)
    total = len(grid.pieces())
    files = [where.with_suffix(f".{i + 1}of{jobs}.json") for i in range(jobs)]
    with Ledger(ledger_of(where), grid.setting()) as ledger, progress() as bars:
        if jobs > 1:
            task = bars.add_task(f"{name}, {jobs} processes", total=total)
            _spawn(context, name, files, threads, lambda done: bars.update(task, completed=done))
        else:
            task = bars.add_task(name, total=total, completed=sum(piece.name in ledger for piece in grid.pieces()))
            grid.measure(ledger, lambda piece: bars.update(task, advance=1, description=str(piece.entry.label)[:40]))
        if rounds and asked["shard"][0] == 1:
            task = bars.add_task("times", total=len(grid.timed()))
            grid.time(ledger, rounds, lambda entry: bars.update(task, advance=1))
        if jobs == 1:
            return grid.result(ledger, said)
        result = merge([json.loads(file.read_text()) for file in files])
        for file in files:
            file.unlink()
        return with_times(result, ledger) | {"command": said}


def _task(data: str, slices: list[str] | None, limit: int | None) -> Task:
    from ..bench.advice.data import task_of
    from ..bench.tasks import testbed_task
    from ..errors import UnsupportedError

    if data == "testbed":
        return testbed_task(slices, limit)
    task, _ = task_of(data, "exact")
    if unknown := set(slices or ()) - set(task.slices()):
        raise UnsupportedError(f"{data} has no slice {', '.join(sorted(unknown))}", hint=", ".join(task.slices()))
    counted: Counter[str] = Counter()
    some = []
    for sample in task.samples:
        counted[sample.slice] += 1
        if (slices is None or sample.slice in slices) and (limit is None or counted[sample.slice] <= limit):
            some.append(sample)
    return replace(task, samples=some)


def ledger_of(results: Path) -> Path:
    """Where a result's single answers are noted while they are measured."""
    return results.with_suffix(".ledger.jsonl")


def _spawn(
    context: typer.Context, name: str, files: list[Path], threads: int | None, tick: Callable[[int], None]
) -> None:
    """Measure parts in processes of their own, and wait for them; all of them end with this one."""
    from ..errors import UnsupportedError

    words = shlex.split(command_of("bench", context, leave=(*LEFT_OUT, "model", "rounds")))
    options = ["--model", name, "--threads", str(threads or 1), "--rounds", "0", "--json"]
    running = []
    try:
        for i, file in enumerate(files):
            part = ["--shard", f"{i + 1}/{len(files)}", "--results", str(file)]
            line = [sys.executable, "-m", "foveate.cli", *words, *options, *part]
            running.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        while any(child.poll() is None for child in running):
            tick(sum(_lines(ledger_of(file)) for file in files))
            if any(child.poll() for child in running):
                break
            time.sleep(1)
        for child in running:
            if child.poll():
                told = (child.communicate()[1] or "").strip()[-2000:]
                raise UnsupportedError(
                    f"a part of the grid failed:\n{told}", hint="the same command goes on from there"
                )
    finally:
        for child in running:
            child.terminate()
            child.wait()


def _lines(path: Path) -> int:
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    out = screen()
    columns = (
        "plan",
        "tokens per image",
        "n",
        "accuracy",
        "95 % interval",
        "difference",
        "95 % interval",
        "worst slice",
    )
    table = Table(*columns)
    for row in result["rows"]:
        where = [row["condition"]] * (row["condition"] != "clean") + [row["selection"]] * (row["selection"] == "once")
        name = f"{row['label']} {' '.join(where)}".strip()
        if "error" in row:
            table.add_row(name, "", "", "refused:", row["error"].splitlines()[0])
            continue
        cells = [name, f"{row['tokens_per_image']:.0f}", str(row["n"]), f"{100 * row['accuracy']:.1f} %"]
        cells.append(f"{100 * row['low']:.1f} to {100 * row['high']:.1f}")
        if change := row.get("against_uncompressed"):
            cells.append(f"{100 * change['difference']:+.1f}")
            cells.append(f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}")
            cells.append(f"{row['worst']['slice']} {100 * row['worst']['difference']:+.0f}")
        table.add_row(*cells)
    out.print(table)
    out.print(result["note"])
