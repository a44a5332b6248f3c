"""``foveate bench time``: seconds and bytes of plans next to the uncompressed model and to the fastest possible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .tools import keep_of, load, names_of, numbers_of, progress


def clock(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="A folder, an id of a model hub, or the word testbed.")] = "testbed",
    shape: Annotated[
        str,
        typer.Option(
            help="Instead: a published size with random weights, llava-1.5-7b, llava-1.5-13b or qwen2.5-vl-7b; "
            "llava-1.5-7b/8 has heads, width and MLP divided by 8 and layers by 4."
        ),
    ] = "",
    methods: Annotated[str, typer.Option(help="Names, with commas.")] = "stride,divprune,fastervlm",
    keep: Annotated[str, typer.Option(help="Budgets, with commas.")] = "0.25,0.1",
    batch: Annotated[str, typer.Option(help="Prompts of a batch, with commas.")] = "1,4",
    images: Annotated[int, typer.Option(min=1, help="Pictures of a prompt.")] = 1,
    text: Annotated[int, typer.Option(min=2, help="Text tokens of a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are generated for the total.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; all variants take turns.")] = 7,
    break_even: Annotated[bool, typer.Option(help="Find from how many visual tokens on a plan pays.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: as torch chooses.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: that of the weights, for a shape by device.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    write: Annotated[Path | None, typer.Option(help="Put the tables between their marks in this file.")] = None,
    results: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("results/time.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Plain data on standard output, no table.")] = False,
) -> None:
    """Time and memory part by part, the oracle beside them, throughput, and from how many tokens on a plan pays."""
    import torch

    from ..bench.table import replaced
    from ..bench.times.clock import END, SIZES, START, entries_of, markdown, measure_time
    from ..bench.times.shapes import build, prompts_by, prompts_of
    from ..errors import UnsupportedError

    batches = numbers_of(batch, int)
    entries = entries_of(names_of(methods), [keep_of(one) for one in names_of(keep)])
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UnsupportedError(f"--dtype {dtype}", hint="auto, float32, bfloat16 or float16")
    if not entries or not batches or min(batches) < 1:
        raise UnsupportedError("nothing to measure", hint="--methods divprune --keep 0.25 --batch 1")
    if shape and model != "testbed":
        raise UnsupportedError("both --model and --shape", hint="leave one of them out")
    if write is not None:
        replaced(write.read_text(), "", START, END)  # fails now rather than after the measurement
    processor: Any = None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UnsupportedError(f"--device {device}: torch finds no GPU", hint="--device cpu")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if shape:
            usual = "bfloat16" if device.startswith("cuda") else "float32"
            found = build(shape, usual if dtype == "auto" else dtype, device)
            prompts = prompts_of(found, text)
        else:
            found, processor = load(model, device, dtype)
            prompts = prompts_by(found, processor, text)
        with progress() as bars:
            task = bars.add_task("first calls", total=None)
            result = measure_time(
                found, prompts, entries, processor=processor, name=shape or model,
                weights="random" if shape else "trained", batches=batches, images=images, new_tokens=new_tokens,
                rounds=rounds, sizes=SIZES if break_even else (), command=_command(ctx),
                tick=lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n")
    if write is not None:
        write.write_text(replaced(write.read_text(), markdown(result), START, END))
        typer.echo(f"wrote {write}", err=True)
    typer.echo(json.dumps(result) if as_json else markdown(result))


def _command(ctx: typer.Context) -> str:
    """What was typed, without what changes no number."""
    words = ["foveate bench time"]
    for parameter in ctx.command.params:
        name, value = parameter.name or "", ctx.params.get(parameter.name or "")
        if name in ("write", "results", "as_json") or value == parameter.default:
            continue
        option = "--" + name.replace("_", "-")
        words.append(f"{option} {value}" if not isinstance(value, bool) else f"--{'no-' * (not value)}{option[2:]}")
    return " ".join(words)
