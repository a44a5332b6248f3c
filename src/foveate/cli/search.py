"""``foveate search``: how much of a picture each layer of a model needs, found on samples and saved as a plan."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .tools import keep_of, load, progress, screen

if TYPE_CHECKING:
    from ..bench.tasks import Task


def search(
    model: Annotated[str, typer.Argument(help="A folder, an id of a model hub, or the word testbed.")],
    method: Annotated[str, typer.Option(help="gsearch, psigmoid or vtw.")] = "gsearch",
    keep: Annotated[
        str | None, typer.Option(help="psigmoid: tokens in the mean layer, as a share (0.3) or a count (64).")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help='testbed, or a file with a line {"image": "a.png", "question": "...", "answer": "..."} for each sample; '
            "several pictures are a list, the answer may be left out."
        ),
    ] = "testbed",
    samples: Annotated[int, typer.Option(min=1, help="Samples to search on, and as many to check on.")] = 64,
    metric: Annotated[
        str, typer.Option(help="agreement with the uncompressed model's answers, or accuracy.")
    ] = "agreement",
    eps: Annotated[float, typer.Option(min=0, max=1, help="gsearch: what may be lost of the metric.")] = 0.02,
    eta: Annotated[float, typer.Option(min=0, help="vtw: divergence of the next token that is allowed.")] = 0.003,
    evaluations: Annotated[int, typer.Option(min=1, help="psigmoid: schedules to try.")] = 24,
    rows: Annotated[str, typer.Option(help="gsearch, psigmoid: text or last, whose attention ranks.")] = "text",
    seed: Annotated[int, typer.Option(min=0, help="Of the samples and of the search.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the plan; foveate run --plan FILE reads it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Plain data on standard output.")] = False,
) -> None:
    """Search how many visual tokens each layer of a model needs, and save the schedule as a plan."""
    from ..bench.search import search as searching
    from ..errors import UnsupportedError

    if out is not None and out.suffix != ".json":
        raise UnsupportedError(f"--out {out}", hint="a name that ends in .json")
    budget = None if keep is None else keep_of(keep)
    searching.check(method, budget)
    drawn = testbed_data(samples, seed) if data == "testbed" else file_data(Path(data), samples, seed)
    found, processor = load(model, device, dtype)
    with progress() as bars:
        depth = found.config.get_text_config().num_hidden_layers
        task = bars.add_task(method, total=searching.most(method, depth, evaluations))
        plan, result = searching.search(
            found,
            processor,
            method,
            drawn,
            keep=budget,
            eps=eps,
            eta=eta,
            evaluations=evaluations,
            seed=seed,
            rows=rows,
            metric=metric,
            batch=batch,
            max_new_tokens=max_new_tokens,
            tick=lambda what: bars.update(task, advance=1),
        )
        bars.update(task, completed=result["tried"], total=result["tried"])
    result = {"model": model, **result, "saved": None}
    if plan is not None and out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        plan.save(out)
        result["saved"] = str(out)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _show(result)


# -- samples -----------------------------------------------------------------------------------------------------------


def testbed_data(n: int, seed: int) -> tuple[Task, Task, str]:
    """n questions of the testbed to search on, n others to check on, over all slices; and where they come from."""
    from .. import testbed
    from ..bench.tasks import Task, testbed_task

    each = -(-n // len(testbed.SLICES))
    try:
        pools = [testbed.generate_scenes(1 + 2 * seed + i, each) for i in range(2)]
        note = (
            f"new questions by the testbed's generator (seeds {1 + 2 * seed} and {2 + 2 * seed}), none of its fixed set"
        )
    except ImportError:
        fixed = testbed.samples(limit=2 * each)
        pools = [fixed[0::2], fixed[1::2]]
        note = (
            f"the first {2 * each} questions of each slice of the testbed's fixed set, every other one for the check; "
        )
        note += "leave them out where the plan is judged on that set"
    tasks = []
    for pool in pools:
        place = {sample.id: [s.id for s in pool if s.slice == sample.slice].index(sample.id) for sample in pool}
        some = sorted(pool, key=lambda sample: place[sample.id])[:n]  # one of each slice, then the second of each, ...
        tasks.append(Task("testbed", some, testbed.inputs, testbed.correct, testbed_task([], 0).note))
    return tasks[0], tasks[1], note


def file_data(path: Path, n: int, seed: int) -> tuple[Task, Task, str]:
    """n lines of a file to search on, n others to check on, drawn by chance; half of the lines each if there are fewer.

    Raises:
        UnsupportedError: if there is no such file, or a line is no sample.
    """
    from ..bench.advice.data import exact, inputs, read_samples
    from ..bench.tasks import Task
    from ..errors import UnsupportedError

    found = read_samples(path)
    if len(found) < 2:
        raise UnsupportedError(f"{path} holds {len(found)} samples", hint="some to search on and some to check on")
    random.Random(seed).shuffle(found)
    n = min(n, len(found) // 2)
    note = f"{path}: {n} lines to search on and {n} others to check on, drawn by chance (seed {seed})"
    tasks = [Task(path.name, part, inputs, exact) for part in (found[:n], found[n : 2 * n])]
    return tasks[0], tasks[1], note


# -- for people --------------------------------------------------------------------------------------------------------


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    out = screen()
    out.print(f"samples  {result['data']}")
    out.print(f"search   {result['tried']} schedules in {result['seconds']:.0f} s, by {_goal(result)}")
    if result["plan"] is None:
        out.print("plan     none: every layer needs all visual tokens, by this measure on these samples")
        return
    checked = result["checked_on"]
    out.print(f"plan     {result['plan']}")
    table = Table("layers", "visual tokens", "share")
    start = 0
    for i, share in enumerate(checked["shares"]):
        if i + 1 == len(checked["shares"]) or checked["shares"][i + 1] != share:
            layers = str(start) if start == i else f"{start}-{i}"
            table.add_row(layers, f"{checked['tokens'][i]:.1f}", f"{100 * share:.1f} %")
            start = i + 1
    table.add_row(
        "mean", f"{sum(checked['tokens']) / len(checked['tokens']):.1f}", f"{100 * checked['mean_share']:.1f} %"
    )
    out.print(table)
    table = Table("", "samples", "same answer", "accuracy before", "accuracy after", "difference")
    for name, where in (("searched on", "searched_on"), ("not searched on", "checked_on")):
        found = result[where]
        cells = [_interval(found["agreement"]), "", "", ""]
        if "change" in found:
            cells[1:] = [_interval(found["uncompressed"]), _interval(found["compressed"]), _change(found["change"])]
        table.add_row(name, str(found["samples"]), *cells)
    out.print(table)
    table = Table(
        "at equal FLOPs, not searched on", "FLOPs of the layers", "same answer", "accuracy", "searched minus it"
    )
    for row in result["by_hand"]:
        reached = f"{100 * row['layers']:.1f} %" + ("" if row["equal"] else ", no nearer")
        right = _interval(row["accuracy"]) if "accuracy" in row else ""
        behind = _change(row["behind"]) if "behind" in row else ""
        table.add_row(row["plan"], reached, _interval(row["agreement"]), right, behind)
    out.print(table)
    flops = result["flops"]
    out.print(
        f"FLOPs    {100 * flops['layers']:.1f} % of the uncompressed model's in its layers, {100 * flops['prefill']:.1f} % "
        "of the prompt with tower and choosing"
    )
    out.print("shares in %, with 95 % intervals")
    if result["task"]:
        out.print(result["task"])
    if result["saved"]:
        out.print(f"saved    {result['saved']}")


def _goal(result: dict[str, Any]) -> str:
    if result["method"] == "vtw":
        return f"divergence of the next token up to {result['eta']:g}"
    if result["method"] == "gsearch":
        return f"{result['metric']} lost up to {result['eps']:g}"
    return f"{result['metric']} at a mean of {result['keep']}"


def _interval(one: dict[str, float]) -> str:
    return f"{100 * one['accuracy']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def _change(one: dict[str, float]) -> str:
    return f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"
