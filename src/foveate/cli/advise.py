"""``foveate advise``: which plan to use on your own samples for your own targets, or that none will do, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .tools import keep_of, load, names_of, progress, screen


def advise(
    model: Annotated[str, typer.Argument(help="A folder, an id of a model hub, or the word testbed.")],
    data: Annotated[
        str,
        typer.Option(
            help='testbed, or a file with a line {"image": "a.png", "question": "...", "answer": "..."} for each sample, or '
            "the same columns as parquet. Answers may be left out; slice and history may be added."
        ),
    ],
    max_drop: Annotated[
        str | None, typer.Option(help="Target: points of accuracy to lose at most, 1pt or 0.5pt.")
    ] = None,
    ttft: Annotated[
        str | None, typer.Option(help="Target: first-token time, 0.6x (of the uncompressed model's) or 200ms.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help='Target: visual tokens over the language model\'s layers, "<=256/image" or "<=0.25".'),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods to try, with commas; default: some that need no training.")
    ] = "",
    keeps: Annotated[
        str, typer.Option(help="Budgets to try, with commas; default: --tokens, a half and a quarter of it, or of all.")
    ] = "",
    plans: Annotated[
        str | None,
        typer.Option(help='Instead: whole plans with semicolons, "divprune:keep=64; plan.json".'),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="exact, contains or agreement (with the uncompressed model); default: exact if answers are known."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask at most this many samples; default: all, 256 without --max-drop.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Risk of recommending a plan that loses more than --max-drop.")
    ] = 0.05,
    block: Annotated[int, typer.Option(min=1, help="Samples between two looks.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; all plans take turns.")] = 8,
    time_batch: Annotated[int, typer.Option(min=1, help="Prompts that are timed together.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the samples.")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="Write the recommended plan; foveate run --plan FILE reads it.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Plain data on standard output.")] = False,
) -> None:
    """Recommend a plan for your samples and targets, or advise against compressing.

    Exit status: 0 if a plan is recommended, 1 if none is, 2 on an error.
    """
    from ..bench.advice.advise import advise as measured
    from ..bench.advice.data import task_of
    from ..bench.advice.targets import Targets, candidates, plans_of
    from ..errors import PlanError, UnsupportedError

    if save is not None and save.suffix != ".json":
        raise UnsupportedError(f"--save {save}", hint="a name that ends in .json")
    if plans is not None and (methods or keeps):
        raise PlanError("--plans names whole plans, --methods and --keeps parts of them", hint="either of them")
    targets = Targets.parse(max_drop, ttft, tokens)
    if plans is None:
        entries = candidates(targets, names_of(methods), [keep_of(one) for one in names_of(keeps)])
    else:
        entries = plans_of(plans)
    task, scored = task_of(data, score, None if limit is None else limit, seed)
    found, processor = load(model, device, dtype)
    with progress() as bars:
        tasks: dict[str, Any] = {}

        def tick(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        plan, result = measured(
            found, processor, task, targets, entries, score=scored, alpha=alpha, limit=limit, block=block, batch=batch,
            max_new_tokens=max_new_tokens, rounds=rounds, time_batch=time_batch, seed=seed, tick=tick,
        )  # fmt: skip
    result["model"] = {"name": model, **result["model"]}
    result["saved"] = None
    if plan is not None and save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        plan.save(save)
        result["saved"] = str(save)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _show(result)
    if plan is None:
        raise typer.Exit(1)


# -- for people --------------------------------------------------------------------------------------------------------


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    out, asked, stock, where = screen(), result["protocol"], result["uncompressed"], result["environment"]
    same = result["measure"] == "changed answers"
    out.print(f"model    {result['model']['name']}, {where['device']} {where['dtype']}, {where['threads']} threads")
    scores = {
        "exact": "exact match",
        "contains": "answer contained",
        "agreement": "same answer as the uncompressed model",
    }
    out.print(
        f"samples  {asked['samples_asked']} of {asked['samples_available']} asked ({result['task']}), {scores[asked['score']]}"
    )
    out.print("targets  " + "; ".join(f"{name} {text}" for name, text in result["targets"].items()))
    words = []
    if stock["tokens_per_image"]:
        words.append(f"{stock['tokens_per_image']:.0f} visual tokens per image")
    if stock["first_token_seconds"] is not None:
        words.append(f"first token {1000 * stock['first_token_seconds']:.4g} ms")
    if "accuracy" in stock:
        words.append(f"accuracy {_span(stock['accuracy'], stock['low'], stock['high'])} of {stock['n']}")
    if words:
        out.print("stock    " + ", ".join(words))
    table = Table()
    table.add_column("plan", overflow="fold", min_width=min(28, max(len(row["label"]) for row in result["rows"])))
    for name in ("tokens", "first token", "same" if same else "accuracy", "changed" if same else "drop", "n"):
        table.add_column(name)
    table.add_column("verdict", overflow="fold")
    for row in result["rows"]:
        cells = [
            row["label"],
            f"{row['tokens_over_layers']:.0f}" if "tokens_over_layers" in row else "",
            "",
            "",
            "",
            "",
        ]
        if "first_token" in row:
            low, high = row["first_token"]["quartiles"]
            cells[2] = f"{row['first_token']['over']:.2f} ({low:.2f} to {high:.2f})"
        if "n" in row:
            cells[3:6] = [
                f"{100 * row['accuracy']:.1f}", _span(row["drop"], row["low"], row["high"]), str(row["n"])
            ]  # fmt: skip
        verdict = "recommended" if row["label"] == result["recommended"] else row["verdict"]
        table.add_row(*cells, f"{verdict}: {row['why']}" if row["why"] else verdict)
    out.print(table)
    out.print(
        "tokens: visual, per image, averaged over the language model's layers; first token: of the uncompressed model's time,"
    )
    out.print(
        f"median and quartiles of {asked['rounds']} rounds of {asked['time_batch']} prompt(s); accuracy and drop in points"
    )
    if asked["plans_asked"]:
        out.print(
            f"bounds of a drop: each holds for all {asked['plans_asked']} plans that were asked and at every look together "
            f"with a probability of {100 * (1 - asked['alpha']):g} %"
        )
    if result["note"]:
        out.print(result["note"])
    if (worst := _worst(result)) is not None:
        out.print(worst)
    out.print()
    out.print(result["answer"])
    if result["saved"]:
        out.print(f"Saved: foveate run {result['model']['name']} --plan {result['saved']} --image ... --ask ...")


def _worst(result: dict[str, Any]) -> str | None:
    """The slice that loses most under the recommended plan."""
    if result["recommended"] is None or not result["rows"][0].get("slices"):
        return None
    slices = result["rows"][0]["slices"]
    name = max(slices, key=lambda one: slices[one]["drop"])
    one = slices[name]
    return (
        f"slice that loses most under {result['recommended']}: {name}, {_span(one['drop'], one['low'], one['high'])} points "
        f"on {one['n']} samples"
    )


def _span(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
