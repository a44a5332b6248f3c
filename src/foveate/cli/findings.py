"""``foveate bench findings``: claims of the field, checked on the testbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .tools import command_of, load_testbed, names_of, progress

LEFT_OUT = ("out", "write", "as_json")  # of the command that is noted: they change no number


def findings(
    context: typer.Context,
    results: Annotated[Path, typer.Option(help="A result of the grid, such as `foveate bench --preset full`.")] = Path(
        "results/grid.json"
    ),
    out: Annotated[Path, typer.Option(help="Where verdicts and numbers go; ledgers lie beside it.")] = Path(
        "results/findings.json"
    ),
    write: Annotated[Path | None, typer.Option(help="Put the page between its marks in this file.")] = None,
    claims: Annotated[str, typer.Option(help="Numbers with commas, such as Q1,Q13; default: all.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Questions per slice for plans that the grid lacks.")] = 25,
    degraded: Annotated[int, typer.Option(min=1, help="Questions per slice and condition of degraded pictures.")] = 12,
    looks: Annotated[int, typer.Option(min=2, help="Prompts that are looked into.")] = 60,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds that count.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: as torch chooses.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, no page.")] = False,
) -> None:
    """Check claims of the field on the testbed: supported, not supported or undecided, with intervals."""
    import torch

    from ..bench.findings import END, START, Scale, chosen, markdown, measure, result
    from ..bench.report.report import read
    from ..bench.table import replaced
    from ..errors import UnsupportedError

    picked = chosen(names_of(claims) or None)
    if write is not None:
        replaced(write.read_text(), "", START, END)  # raises before anything is measured
    grid = None
    if any({"grid", "time"} & set(claim.needs) for claim in picked) and (results.exists() or _given(context)):
        source = read(results)
        if source.kind != "grid":
            raise UnsupportedError(f"{results} is not a grid", hint="foveate bench --preset full")
        grid = source.result
    if threads is not None:
        torch.set_num_threads(threads)
    model, processor = load_testbed(device, dtype)
    scale = Scale(samples, degraded, looks, rounds)
    with progress() as bars:
        task = bars.add_task("measuring", total=None)
        evidence = measure(
            model, processor, picked, grid, lambda name: out.with_suffix(f".{name}.jsonl"), scale=scale, batch=batch,
            tick=lambda what: bars.update(task, advance=1, description=what[:40]),
        )  # fmt: skip
    found = result(model, picked, evidence, grid, scale, command_of("foveate bench findings", context, leave=LEFT_OUT))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    page = markdown(found)
    if write is not None:
        write.write_text(replaced(write.read_text(), page, START, END))
        typer.echo(f"wrote {write}", err=True)
    typer.echo(json.dumps(found) if as_json else page)


def _given(context: typer.Context) -> bool:
    source = context.get_parameter_source("results")
    return source is not None and source.name == "COMMANDLINE"
