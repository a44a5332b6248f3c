"""``foveate bench table``: what the testbed says, as Markdown between two marks of a file and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import registry
from ..errors import UnsupportedError
from .runner import STOCK, grid, measure
from .tasks import Task, testbed_task

START, END = "<!-- testbed-table:start -->", "<!-- testbed-table:end -->"
GRID_START, GRID_END = "<!-- grid-table:start -->", "<!-- grid-table:end -->"


def testbed_table(
    model: Any,
    processor: Any,
    *,
    methods: Sequence[str] | None = None,
    keeps: Sequence[int] = (192, 128, 64),
    limit: int | None = 80,
    batch: int = 16,
    task: Task | None = None,
    command: str = "foveate bench table",
    tick: Callable[[int, int], None] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Uncompressed accuracy per slice, and all methods at several budgets.

    Args:
        model, processor: the testbed.
        methods: names; all that are known when None.
        keeps: tokens per image.
        limit: questions per slice.
        batch: questions per batch.
        task: other questions than the testbed's.
        command: what made the table, for its readers.
        tick: called with (steps done, steps in all).

    Returns:
        Markdown, and the numbers behind it.
    """
    task = task or testbed_task(limit=limit)
    entries = grid(methods or list(registry.classes()), list(keeps))
    total = len(entries) * -(-len(task.samples) // batch)
    done = 0

    def step(_: str) -> None:
        nonlocal done
        done += 1
        if tick is not None:
            tick(done, total)

    result = measure(model, processor, task, entries, batch=batch, tick=step)
    result.pop("answers")
    result["chance"] = _chance(task)
    result["command"] = command
    return markdown(result), result


def _chance(task: Task) -> dict[str, float]:
    from .. import testbed

    return {name: testbed.chance_level([s for s in task.samples if s.slice == name]) for name in task.slices()}


def markdown(result: dict[str, Any]) -> str:
    """The Markdown of a result of :func:`testbed_table`."""
    stock = result["rows"][0]
    where = result["environment"]
    lines = [
        f"{result['note']} {result['samples']} questions, greedy answers, 95 % Wilson intervals "
        f"(torch {where['torch']}, transformers {where['transformers']}, {where['dtype']}). "
        f"Made by `{result['command']}`.",
        "",
        f"Uncompressed, {stock['tokens_per_image']:.0f} tokens per image:",
        "",
        "| slice | questions | accuracy | interval | chance |",
        "|---|--:|--:|:-:|--:|",
    ]
    for name, row in [*stock["slices"].items(), ("all", stock)]:
        chance = result["chance"].get(name)
        lines.append(
            f"| {name} | {row['n']} | {_percent(row['accuracy'])} | {_interval(row)} "
            f"| {'' if chance is None else _percent(chance)} |"
        )
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["rows"][1:]:
        by_method.setdefault(row["method"], {})[row["keep"]] = row
    keeps = list(next(iter(by_method.values()), {}))
    lines += ["", "All slices, by tokens kept per image (accuracy in %, interval):", ""]
    lines += ["| method |" + "".join(f" {keep} |" for keep in keeps), "|---|" + ":-:|" * len(keeps)]
    smallest = keeps[-1] if keeps else ""

    def order(name: str) -> tuple[float, str]:
        return -by_method[name][smallest].get("accuracy", -1.0), name

    for name in sorted(by_method, key=order):
        cells = [_cell(by_method[name][keep]) for keep in keeps]
        lines.append(f"| {name} |" + "".join(f" {cell} |" for cell in cells))
    if not keeps:
        return "\n".join(lines)
    slices = result["slices"]
    lines += ["", f"By slice at {smallest} tokens per image (accuracy in %):", ""]
    lines += ["| method |" + "".join(f" {s} |" for s in slices), "|---|" + "--:|" * len(slices)]
    rows = [(STOCK, stock), *((name, by_method[name][smallest]) for name in sorted(by_method, key=order))]
    for name, row in rows:
        if "error" not in row:
            lines.append(f"| {name} |" + "".join(f" {_percent(row['slices'][s]['accuracy'])} |" for s in slices))
    return "\n".join(lines)


PLACES = {
    "Before the language model": ("input", "encoder", "connector"),
    "Between its layers": ("layers",),
    "In its cache": ("cache",),
}
SHOWN = "64"  # tokens per image at which times and worst slices are shown


def overview(result: dict[str, Any]) -> str:
    """The Markdown of a grid's result: a table for each place where methods work, by the accuracy at the smallest budget."""
    rows = [row for row in result["rows"] if row["condition"] == "clean" and row["selection"] == "turn"]
    stock, where = rows[0], result["environment"]
    lines = [
        f"{result['note']} {len(result['samples'])} questions in {len(result['slices'])} slices, greedy answers, accuracy in % "
        f"with 95 % Wilson intervals. {where['processor']}, {where['threads']} thread, torch {where['torch']}, transformers "
        f"{where['transformers']}, {where['dtype']} on {where['device']}. Made by `{result['command']}`.",
        "",
        f"Uncompressed, {stock['tokens_per_image']:.0f} tokens per image: {_cell(stock)}.",
    ]
    keeps = [keep for keep in dict.fromkeys(row["keep"] for row in rows) if keep]
    for title, stages in PLACES.items():
        by_method: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            if row["stage"] in stages and not row["seed"] and "error" not in row:
                by_method.setdefault(row["method"], {})[row["keep"]] = row
        swept = {name: found for name, found in by_method.items() if "" not in found}
        lines += ["", f"## {title}", "", "| method |" + "".join(f" {keep} |" for keep in keeps)]
        lines[-1] += f" first token at {SHOWN} | worst slice at {SHOWN} |"
        lines.append("|---|" + ":-:|" * len(keeps) + "--:|---|")
        for name in sorted(swept, key=lambda n: (-swept[n].get(keeps[-1], {}).get("accuracy", -1), n)):
            cells = [_cell(swept[name][keep]) if keep in swept[name] else "" for keep in keeps]
            shown = swept[name].get(SHOWN, {})
            cells.append(f"{shown['time']['first_token']['over']:.2f}" if "time" in shown else "")
            worst = shown.get("worst")
            cells.append(
                f"{worst['slice']} {100 * worst['difference']:+.0f}" if worst and worst["difference"] < 0 else ""
            )
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        alone = [(name, found[""]) for name, found in sorted(by_method.items()) if "" in found]
        if alone:
            lines += ["", "With a schedule of their own: "]
            lines[-1] += ", ".join(f"{name} {_cell(row)}" for name, row in alone) + "."
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if "error" in row:
        return "refused"
    return f"{_percent(row['accuracy'])} ({_interval(row)})"


def _interval(row: dict[str, Any]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def replaced(text: str, table: str, start: str = START, end: str = END) -> str:
    """``text`` with what stands between two marks replaced.

    Raises:
        UnsupportedError: if the marks are missing.
    """
    before, begun, rest = text.partition(start)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise UnsupportedError(
            "the file has no place for the table", hint=f"put {start} and {end} on lines of their own"
        )
    return f"{before}{start}\n{table}\n{end}{after}"
