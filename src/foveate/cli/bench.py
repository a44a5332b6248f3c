"""``foveate bench``: the grid, and under it speed against the oracle, choosing by itself, and the testbed's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .clock import clock
from .findings import findings
from .grid import grid
from .load import load
from .tools import load_testbed, names_of, numbers_of, progress, screen

app = typer.Typer(no_args_is_help=True)
app.callback(invoke_without_command=True)(grid)
app.command("time")(clock)
app.command()(load)
app.command()(findings)
As_json = Annotated[bool, typer.Option("--json", help="Only the line of plain data, no table.")]


@app.command()
def speed(
    layers: Annotated[int, typer.Option(min=1, help="Decoder layers.")] = 12,
    width: Annotated[int, typer.Option(min=64, help="Decoder width, a multiple of 64.")] = 1024,
    tokens: Annotated[str, typer.Option(help="Visual tokens of a prompt, multiples of 576, with commas.")] = "576,2880",
    text: Annotated[int, typer.Option(min=2, help="Text tokens of a prompt.")] = 64,
    keep: Annotated[str, typer.Option(help="Shares to keep, with commas.")] = "0.25,0.1",
    methods: Annotated[str, typer.Option(help="Names, with commas.")] = "stride,divprune,fastervlm",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count; all variants take turns.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: as torch chooses.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: As_json = False,
) -> None:
    """What hooks and choosing cost, next to the same model on a prompt that holds only the kept tokens."""
    from ..bench.times.speed import Shape, calls, measure_speed
    from ..errors import UnsupportedError

    names, sizes, shares = names_of(methods), numbers_of(tokens, int), numbers_of(keep, float)
    if width % 64:
        raise UnsupportedError(f"--width {width}", hint="a multiple of 64")
    if any(n < 576 or n % 576 for n in sizes):
        raise UnsupportedError(f"--tokens {tokens}", hint="multiples of 576, the tokens of one picture")
    heads = width // 64
    kv = next(k for k in (heads // 4, heads // 2, heads) if k and heads % k == 0)
    with progress() as bars:
        task = bars.add_task("prefill", total=calls(sizes, shares, names, repeats))
        result = measure_speed(
            shape=Shape(layers, width, heads, kv),
            tokens=sizes,
            text=text,
            keeps=shares,
            methods=names,
            repeats=repeats,
            threads=threads,
            dtype=dtype,
            device=device,
            tick=lambda what: bars.update(task, advance=1, description=what),
        )
    if not as_json:
        _show_speed(result)
    typer.echo(json.dumps(result))


def _show_speed(result: dict[str, Any]) -> None:
    from rich.table import Table

    model, out = result["model"], screen()
    out.print(
        f"random {model['class']}, {model['layers']} layers x {model['width']}, {result['text_tokens']} text tokens, "
        f"{result['environment']['device']} {result['environment']['dtype']}, "
        f"{result['environment']['threads']} threads, median of {result['repeats']} rounds"
    )
    columns = ["visual tokens", "attached, keep=1.0 / stock", "quartiles", "processor time"]
    columns += ["stock / stock", "quartiles", "added / stock", "hooks / stock"]
    table = Table(*columns, title="overhead")
    for row in result["overhead"]:
        cells = [str(row["tokens"]), f"{row['ratio']:.3f}", "{:.3f} - {:.3f}".format(*row["ratio_quartiles"])]
        cells += [f"{row['ratio_cpu']:.3f}", f"{row['control']:.3f}"]
        cells += ["{:.3f} - {:.3f}".format(*row["control_quartiles"]), f"{row['added_of_stock']:.4f}"]
        table.add_row(*cells, f"{row['hooks_of_stock']:.4f}")
    out.print(table)
    out.print("added = what comes before the language model, timed by itself; stock / stock = noise of the whole ratio")
    columns = ["visual tokens", "method", "keep", "compressed / stock", "limit / stock", "efficiency", "quartiles"]
    columns += ["processor time", "choosing / stock", "hooks / stock"]
    memory = any("peak_memory_of_oracle" in row for row in result["prefill"])
    table = Table(*columns, *(["peak memory / oracle"] if memory else []), title="prefill, choosing included")
    for row in result["prefill"]:
        low, high = row["efficiency_quartiles"]
        limit = row["ideal_of_stock" if "ideal_of_stock" in row else "oracle_of_stock"]
        cells = [str(row["tokens"]), row["method"], f"{row['keep']:g}", f"{row['of_stock']:.3f}"]
        cells += [f"{limit:.3f}", f"{row['efficiency']:.3f}", f"{low:.3f} - {high:.3f}", f"{row['efficiency_cpu']:.3f}"]
        parts = ("choosing_of_stock", "hooks_of_stock")  # not told apart between the layers
        cells += [f"{row[part]:.4f}" if part in row else "-" for part in parts]
        peak = f"{row['peak_memory_of_oracle']:.3f}" if "peak_memory_of_oracle" in row else "-"
        table.add_row(*cells, *([peak] if memory else []))
    out.print(table)
    out.print("efficiency = limit / compressed; 1.000 is the fastest that dropping tokens can be")
    out.print("limit = the stock model on the kept tokens; between the layers, each of its layers on what runs there")


@app.command()
def table(
    write: Annotated[Path | None, typer.Option(help="Put the table between its marks in this file.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("results/testbed.json"),
    limit: Annotated[int, typer.Option(min=1, help="Questions per slice; the set holds 160.")] = 80,
    methods: Annotated[str, typer.Option(help="Names, with commas; default: all.")] = "",
    keep: Annotated[str, typer.Option(help="Tokens per image, with commas.")] = "192,128,64",
    batch: Annotated[int, typer.Option(min=1)] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: As_json = False,
) -> None:
    """Accuracy on the testbed: the uncompressed model by slice, and all methods at several budgets."""
    from ..bench.table import replaced, testbed_table

    model, processor = load_testbed(device)
    names, budgets = names_of(methods) or None, numbers_of(keep, int)
    options = {
        "--limit": str(limit),
        "--keep": keep,
        "--methods": methods,
        "--write": "" if write is None else str(write),
    }
    usual = {"--limit": "80", "--keep": "192,128,64", "--methods": "", "--write": ""}
    said = [f" {name} {value}" for name, value in options.items() if value != usual[name]]
    with progress() as bars:
        task = bars.add_task("answers", total=None)
        markdown, result = testbed_table(
            model, processor, methods=names, keeps=budgets, limit=limit, batch=batch,
            command="foveate bench table" + "".join(said),
            tick=lambda done, total: bars.update(task, completed=done, total=total),
        )  # fmt: skip
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n")
    if write is not None:
        write.write_text(replaced(write.read_text(), markdown))
        typer.echo(f"wrote {write}", err=True)
    typer.echo(json.dumps(result) if as_json else markdown)


@app.command()
def select(
    write: Annotated[Path | None, typer.Option(help="Put the table between its marks in this file.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("results/select.json"),
    methods: Annotated[str, typer.Option(help="Names, with commas; default: all.")] = "",
    tokens: Annotated[str, typer.Option(help="Visual tokens, multiples of 576, with commas.")] = "576,2880",
    width: Annotated[int, typer.Option(min=8, help="Width of their features.")] = 1024,
    keep: Annotated[float, typer.Option(min=0.001, max=0.999, help="Share to keep.")] = 0.1,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count; all methods take turns.")] = 9,
    as_json: As_json = False,
) -> None:
    """What choosing costs by itself, in milliseconds and in n x n x d products, on one thread."""
    from ..bench.table import replaced
    from ..bench.times.select import END, START, markdown, measure_select, steps

    names, sizes = names_of(methods) or None, numbers_of(tokens, int)
    with progress() as bars:
        task = bars.add_task("choosing", total=steps(names, sizes, repeats))
        result = measure_select(names, sizes, width, keep, repeats, lambda: bars.advance(task))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n")
    if write is not None:
        write.write_text(replaced(write.read_text(), markdown(result), START, END))
        typer.echo(f"wrote {write}", err=True)
    typer.echo(json.dumps(result) if as_json else markdown(result))


@app.command()
def inside(
    write: Annotated[Path | None, typer.Option(help="Put the tables between their marks in this file.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("results/inside.json"),
    samples: Annotated[int, typer.Option(min=1, help="Questions per slice; the set holds 160.")] = 50,
    methods: Annotated[str, typer.Option(help="Names, with commas; default: all of the layers and the cache.")] = "",
    shares: Annotated[str, typer.Option(help="Of the decoder layers' arithmetic, with commas.")] = "0.7,0.5,0.35",
    sizes: Annotated[str, typer.Option(help="Of the cache's bytes, with commas.")] = "0.5,0.25,0.1",
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds that count.")] = 7,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: as torch chooses.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: As_json = False,
) -> None:
    """Methods between the language model's layers at equal arithmetic, and of its cache at equal bytes, on the testbed."""
    import torch

    from ..bench.inside import END, START, markdown, measure_inside
    from ..bench.table import replaced

    names, targets = names_of(methods) or None, (numbers_of(shares, float), numbers_of(sizes, float))
    if threads is not None:
        torch.set_num_threads(threads)
    model, processor = load_testbed(device)
    said = {"--samples": samples, "--methods": methods, "--shares": shares, "--sizes": sizes, "--repeats": repeats}
    said |= {"--batch": batch, "--threads": threads, "--device": device, "--write": write}
    usual = {"--samples": 50, "--methods": "", "--shares": "0.7,0.5,0.35", "--sizes": "0.5,0.25,0.1", "--repeats": 7}
    usual |= {"--batch": 16, "--device": "cpu"}
    words = [f" {name} {value}" for name, value in said.items() if value != usual.get(name)]
    with progress() as bars:
        task = bars.add_task("search", total=None)
        result = measure_inside(
            model, processor, shares=targets[0], sizes=targets[1], methods=names, samples=samples, repeats=repeats,
            batch=batch, command="foveate bench inside" + "".join(words),
            tick=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )  # fmt: skip
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n")
    if write is not None:
        write.write_text(replaced(write.read_text(), markdown(result), START, END))
        typer.echo(f"wrote {write}", err=True)
    typer.echo(json.dumps(result) if as_json else markdown(result))
