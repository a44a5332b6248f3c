"""``foveate bench load``: a server under load on the loopback interface, with and without compression."""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from .tools import command_of, numbers_of, plan_of, progress, screen

LEFT_OUT = ("model", "out", "as_json")  # of the command that is noted: the model stands in it anyway


def load(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="testbed, a folder, or a published size with random weights: llava-1.5-7b/8.")
    ] = "testbed",
    plan: Annotated[list[str] | None, typer.Option(help="A plan, or its file; may be repeated.")] = None,
    server: Annotated[str, typer.Option(help="vllm or foveate: which one to start.")] = "",
    url: Annotated[
        str,
        typer.Option(
            help="Instead: a server that runs on this machine, as http://127.0.0.1:8000. With --server foveate "
            "it is also asked to keep everything; for that it has to be started with --cap 1.0."
        ),
    ] = "",
    concurrency: Annotated[str, typer.Option(help="Clients at once, with commas; at most 256.")] = "1,4,16",
    requests: Annotated[int, typer.Option(help="Of each run; at most 2000.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 8,
    rounds: Annotated[int, typer.Option(help="Of all variants; every second one goes backwards.")] = 2,
    warm_up: Annotated[int, typer.Option(help="Requests before each run that do not count.")] = 4,
    soak: Annotated[int, typer.Option(help="Requests at the end, by 4 clients, to watch the memory; from 200 on.")] = 0,
    side: Annotated[int, typer.Option(help="Of the pictures, in pixels.")] = 336,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a request is an error.")] = 300.0,
    start: Annotated[float, typer.Option(min=1, help="Seconds that a server may take to start.")] = 600.0,
    server_args: Annotated[str, typer.Option(help="Further options of the server's command, as one word.")] = "",
    out: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("results/load.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, no table.")] = False,
) -> None:
    """Time to the first text, latency, throughput and memory of a server, with and without compression, in turns."""
    from ..errors import UnsupportedError, require

    if server not in ("", "vllm", "foveate") or not (server or url):
        raise UnsupportedError(f"--server {server!r}", hint="vllm or foveate, or the --url of a server that runs")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnsupportedError(f"--dtype {dtype}", hint="float32, bfloat16 or float16")
    if url and plan:
        raise UnsupportedError("both --url and --plan", hint="a server that runs has its plan")
    if not url and not plan:
        raise UnsupportedError("no plan to compare with", hint="--plan divprune:keep=0.25")
    from ..bench.load.load import Load, measure_load, sessions_at, sessions_of

    asked = Load(tuple(numbers_of(concurrency, int)), requests, rounds, new_tokens, soak, warm_up, side, timeout)
    sessions = sessions_at(url, server) if url else []
    plans = [plan_of(one) for one in plan or []]
    require("openai", "serve")
    import torch

    from ..bench.environment import environment
    from ..bench.load.servers import served

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {
        "bench": "load", "schema": 1,
        "command": command_of(f"foveate bench load {model}" if plan else "foveate bench load", context, leave=LEFT_OUT),
        "environment": environment(device, dtype), "model": {"name": "served already"},
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)

    def save(part: dict[str, Any]) -> None:
        out.write_text(json.dumps(result | part, indent=1) + "\n")

    with ExitStack() as stack:
        if not url:
            folder, result["model"] = stack.enter_context(served(model, server, dtype))
            sessions = sessions_of(server, folder, plans, asked, dtype, shlex.split(server_args), start)
        bars = stack.enter_context(progress())
        task = bars.add_task("load", total=None)
        result |= measure_load(
            sessions, asked, save=save,
            tick=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    save({})
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(result)
    typer.echo(f"wrote {out}", err=True)
    if not any(row["answered"] for row in result["rows"]):
        raise typer.Exit(1)


def show(result: dict[str, Any]) -> None:
    """A table of times in milliseconds, ratios to the uncompressed model behind them, and what the memory did."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    table = Table(
        "clients", Column("variant", overflow="fold", min_width=14), "n", "prompt\ntokens", "first text\np50 ms", "p95 ms",
        "answer\np50 ms", "p95 ms", "answers\nper s", "output\ntokens", Column("errors", overflow="fold"), box=SIMPLE_HEAD,
    )  # fmt: skip
    clients = 0
    for row in result["rows"]:
        if clients not in (0, row["concurrency"]):
            table.add_section()
        clients = row["concurrency"]
        times = [
            _cell(row, name, 1000) for name in ("first_token_p50", "first_token_p95", "latency_p50", "latency_p95")
        ]
        prompt, output = (_plain(row, name) for name in ("prompt_tokens", "output_tokens"))
        errors = ", ".join(f"{count} {kind}" for kind, count in row["errors"].items())
        cells = [str(clients), row["label"], str(row["answered"]), prompt, *times, _cell(row, "requests_per_second", 1)]
        table.add_row(*cells, output, errors)
    paper = screen()
    paper.print(table)
    many, turns = result["load"]["requests"], result["load"]["rounds"]
    paper.print(
        f"n: answers in {turns} round{'s' * (turns > 1)} of {many} requests. Medians over rounds; below, the ratio to the "
        "uncompressed run of the same round and, of several rounds, its range."
    )
    for said in {f"{kind}: {words}" for run in result["runs"] for kind, words in run["said"].items()}:
        paper.print(said)
    for row in result["rows"]:
        if result["server"]["name"] == "vllm" and row.get("prompt_tokens", {}).get("over", 0) >= 1:
            paper.print(f"{row['label']}: prompts as long as without compression. Does VLLM_PLUGINS leave foveate out?")
    for one in result["memory"]:
        (first, low), (last, high) = one["points"][0], one["points"][-1]
        paper.print(
            f"memory, {one['server']}, round {one['round'] + 1}: {low:.0f} MiB after {first} requests, {high:.0f} MiB after {last}"
        )
    for one in result["soak"]:
        if line := one.get("line"):
            paper.print(
                f"soak, {one['label']}: {line['mib_per_100']:+.2f} MiB per 100 requests "
                f"({line['low']:+.2f} to {line['high']:+.2f}, {line['points']} points), {one['answered']} of "
                f"{one['requests']} answered"
            )


def _plain(row: dict[str, Any], name: str) -> str:
    return f"{row[name]['median']:.4g}" if name in row else ""


def _cell(row: dict[str, Any], name: str, scale: float) -> str:
    """The median and, below it, its ratio; of several rounds with the range."""
    if name not in row:
        return ""
    value = scale * row[name]["median"]
    shown = f"{value:.0f}" if scale > 1 else f"{value:.2f}"
    if "over" not in row[name]:
        return shown
    low, high = (f"{one:.2f}" for one in row[name]["range"])
    return f"{shown}\nx{row[name]['over']:.2f}" + (f"\n{low}-{high}" if row["rounds"] > 1 else "")
