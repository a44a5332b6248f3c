"""``foveate bench time``: what plans cost and save in seconds and bytes, next to the uncompressed model in the same rounds.

Of each plan, on batches of prompts that are as long as each other:

- *tower*: the encoder's call, connector included, with whatever the plan has it collect or leave out;
- *prefill*: the language model from ready features, selection included; *selection*: its part spent choosing and
  rearranging, as the report says (what a plan inside the tower spent there is added to it);
- *first token*: both, from pixels;
- *decode*: one greedy step on the cache that the prefill returned, of a few that are timed together;
- *total*: ``generate`` from pixels, with so many new tokens, no fewer and no more.

The limit of a prefill is the *oracle*: the stock decoder and head on the very embeddings, mask and positions that reach
the decoder under the plan, without hooks. Looking up embeddings and putting them together counts against the plan. Plans
that work between the layers or on the cache have no such limit. Efficiency is the oracle over the compressed prefill.

Bytes of the cache are measured on what a prefill returns. Its peak of memory is that of CUDA's allocator, above what was
held before; elsewhere nothing measures it, and it is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from ... import registry
from ...errors import UnsupportedError
from ...plan import Plan
from ..environment import environment
from ..inside import GROUP, SHAKY, STEPS
from ..runner import STOCK, Entry
from .breakeven import SIZES, measure_break_even
from .shapes import Prompts, tokens_of
from .subject import KINDS, Setting, Subject, Tick, tried
from .timing import Times

START, END = "<!-- time-table:start -->", "<!-- time-table:end -->"
CONTROL = "control"


def entries_of(methods: Sequence[str], keeps: Sequence[object]) -> list[Entry]:
    """Every method at every budget; once and without one, where its options alone say how much stays.

    Raises:
        FoveateError: if there is no such method, or a budget cannot be read.
    """
    entries = []
    for name in methods:
        settled = getattr(registry.get(name)(), "settled", False)
        for keep in [None] if settled else keeps:
            plan = Plan.of(name, keep)
            entries.append(Entry(str(plan), plan, name, "" if keep is None else str(keep)))
    return entries


def measure_time(
    model: Any,
    prompts: Prompts,
    entries: Sequence[Entry],
    *,
    processor: Any = None,
    name: str = "",
    weights: str = "trained",
    batches: Sequence[int] = (1, 4),
    images: int = 1,
    new_tokens: int = 16,
    rounds: int = 7,
    sizes: Sequence[tuple[int, float]] = SIZES,
    command: str = "foveate bench time",
    tick: Tick | None = None,
) -> dict[str, Any]:
    """Measure plans against the uncompressed model.

    Args:
        model: as loaded by transformers, or built by :func:`foveate.bench.times.shapes.build`.
        prompts: makes batches of prompts that are as long as each other.
        entries: plans; the uncompressed model is added to them.
        processor: for methods that look at the question.
        name, weights: what to call the model, and whether its weights are "trained" or "random".
        batches: numbers of prompts in a batch.
        images: pictures of a prompt.
        new_tokens: that ``total`` generates, the first one included.
        rounds: that count; in each, everything that is compared runs once, in another order.
        sizes: of the prompts for the break-even, see :func:`foveate.bench.times.breakeven.measure_break_even`; none leaves it out.
        command: what made the numbers, for their readers.
        tick: called with what runs, calls done and calls in all.

    Returns:
        Plain data: ``rows``, for each batch the uncompressed model and then the plans, and ``break_even``. A row that a
        model or method refuses, or for which GPU memory runs out, holds ``error`` instead of numbers. ``control`` is the
        uncompressed model over itself, one value for each group of plans that took turns: the noise.

    Raises:
        UnsupportedError: if a number is below 1, or prompts of a batch are not as long as each other.
    """
    for word, number in {
        "batch": min(batches, default=0),
        "images": images,
        "new tokens": new_tokens,
        "rounds": rounds,
    }.items():
        if number < 1:
            raise UnsupportedError(f"{word}: {number}", hint="at least 1")
    parameter, text = next(model.parameters()), model.config.get_text_config()
    setting = Setting(model, processor, prompts, entries, rounds, tick or (lambda what, done, total: None))
    rows: list[dict[str, Any]] = []
    control: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with torch.cuda.device(parameter.device) if parameter.is_cuda else nullcontext():
        for batch in batches:
            fed = prompts(batch, images, 1.0)
            if not fed["attention_mask"].all():
                raise UnsupportedError("the prompts of a batch are of unequal length", hint="pictures of one size")
            rows += _rows(setting, fed, new_tokens, control)
        even = measure_break_even(setting, sizes) if sizes else []
    return {
        "bench": "time",
        "schema": 1,
        "command": command,
        "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
        "model": {
            "name": name or type(model).__name__,
            "class": type(model).__name__,
            "weights": weights,
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "attention": text._attn_implementation,
        },
        "images": images,
        "rounds": rounds,
        "decode_steps": STEPS,
        "control": control,
        "rows": rows,
        "break_even": even,
    }


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(
    setting: Setting, fed: dict[str, Any], new_tokens: int, control: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """The rows of one batch. Adds to ``control``."""
    batch, (visual, text) = len(fed["input_ids"]), tokens_of(setting.model, fed)
    sizes = {"batch": batch, "visual_tokens": visual, "text_tokens": text, "new_tokens": new_tokens}
    rows, subjects = list[dict[str, Any]](), dict[str, Subject]()
    for entry in [Entry(STOCK, None, STOCK), *setting.entries]:
        stage = "" if entry.plan is None else entry.plan.steps[0].stage
        rows.append({"label": entry.label, "method": entry.method, "keep": entry.keep, "stage": stage, **sizes})
        if entry.plan is not None and STOCK not in subjects:
            rows[-1]["error"] = "the uncompressed model does not run on this batch"
            continue
        subject, fault = tried(partial(Subject, setting, fed, entry.plan, new_tokens))
        if fault:
            rows[-1]["error"] = fault
        else:
            subjects[entry.label] = subject
    times = _times(setting, subjects, control, f"batch {batch}") if subjects else {}
    for row in rows:
        if "error" not in row:
            row["time"] = times[row["label"]]
            row["prompts_per_second"] = batch / row["time"]["total"]["seconds"]
    return rows


def _times(
    setting: Setting, subjects: dict[str, Subject], control: dict[str, list[float]], what: str
) -> dict[str, dict[str, Any]]:
    """By label what the schema calls TIME; plans take turns in groups, each with the uncompressed model."""
    stock, labels = subjects[STOCK], [label for label in subjects if label != STOCK]
    groups = [labels[i : i + GROUP] for i in range(0, len(labels), GROUP)] or [[]]
    out: dict[str, dict[str, Any]] = {STOCK: {}}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, group in enumerate(groups, 1):
        turns = {STOCK: stock, CONTROL: stock} | {label: subjects[label] for label in group}
        jobs = {f"{kind}|{label}": one.job(kind) for label, one in turns.items() for kind in one.kinds}
        found = setting.times(jobs, f"{what}, group {number} of {len(groups)}")
        for kind in KINDS:
            seconds[kind].append(found[f"{kind}|{STOCK}"].median())
            control[kind].append(found[f"{kind}|{CONTROL}"].over(found[f"{kind}|{STOCK}"]))
        for label in group:
            out[label] = _time(found, label, subjects[label]) | _bytes(subjects[label], stock)
    for kind, medians in seconds.items():
        out[STOCK][kind] = {"seconds": statistics.median(medians), "over": 1.0, "quartiles": [1.0, 1.0]}
    out[STOCK] |= _bytes(stock, stock)
    for time in out.values():
        time["decode"]["seconds"] /= STEPS
    return out


def _time(found: dict[str, Times], label: str, subject: Subject) -> dict[str, Any]:
    """Seconds and ratios of one plan in its group's rounds."""
    whole = found[f"prefill|{STOCK}"]
    time: dict[str, Any] = {kind: _ratio(found[f"{kind}|{label}"], found[f"{kind}|{STOCK}"]) for kind in KINDS}
    time["selection"] = _ratio(Times(subject.selection[-len(whole.wall) :]), whole)  # the warm-up came before
    if subject.kept is not None:
        limit, mine = found[f"oracle|{label}"], found[f"prefill|{label}"]
        time["oracle"] = _ratio(limit, whole)
        time |= {"efficiency": limit.over(mine), "efficiency_quartiles": list(limit.spread(mine))}
    return time


def _ratio(mine: Times, other: Times) -> dict[str, Any]:
    return {"seconds": mine.median(), "over": mine.over(other), "quartiles": list(mine.spread(other))}


def _bytes(subject: Subject, stock: Subject) -> dict[str, Any]:
    return {
        "cache_bytes": subject.cache_bytes,
        "cache_over": subject.cache_bytes / stock.cache_bytes,
        "peak_memory": subject.peak,
        "peak_over": None if subject.peak is None or not stock.peak else subject.peak / stock.peak,
    }


# -- the page ----------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "tower": "tower", "selection": "selection", "prefill": "prefill", "oracle": "oracle", "efficiency": "efficiency",
    "first_token": "first token", "decode": "decoding step", "total": "total",
}  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """A table for each batch size of a result of :func:`measure_time`, and one for the break-even."""
    where, model, rows = result["environment"], result["model"], result["rows"]
    lines = [
        f"{model['name']} ({model['class']}, {model['weights']} weights, {model['parameters'] / 1e6:.0f} M parameters, "
        f"{model['layers']} decoder layers of width {model['width']}, {model['attention']} attention) on "
        f"{where.get('gpu', where['processor'])}, {where['threads']} thread{'s' * (where['threads'] > 1)}, torch "
        f"{where['torch']}, transformers {where['transformers']}, {where['dtype']}. Made by `{result['command']}`.",
        "",
        f"Medians of {result['rounds']} rounds in which all variants of a group take turns. Of the uncompressed model "
        "seconds; of plans ratios to it in the same rounds, with quartiles; selection and oracle over its prefill. "
        f"~ marks quartiles more than {SHAKY:g} of the ratio apart: do not rely on these.{_noise(result['control'])}",
    ]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        lines += ["", *_table([row for row in rows if row["batch"] == batch])]
    if result["break_even"]:
        lines += ["", "Visual tokens of a prompt from which on a plan shortens the time to the first token:", ""]
        lines += ["| plan | break-even | how it was found |", "|---|--:|---|"]
        for one in result["break_even"]:
            number = "never" if one["visual_tokens"] is None else f"{one['visual_tokens']:.0f}"
            lines.append(f"| {one['label']} | {number} | {' '.join(one['why'].split())} |")
    for row in rows:
        if "error" in row:
            why = row["error"].split("\n")[0].rstrip(".")
            lines += ["", f"`{row['label']}` at batch {row['batch']} is not measured: {why}."]
    return "\n".join(lines)


def _noise(control: dict[str, list[float]]) -> str:
    off = {kind: max(abs(ratio - 1) for ratio in each) for kind, each in control.items() if each}
    said = ", ".join(f"{_COLUMNS[kind]} {most:.3f}" for kind, most in off.items())
    return f" That model over itself was off by at most: {said}." if said else ""


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of one batch size."""
    first, columns = rows[0], [*_COLUMNS.values(), "cache", "peak memory", "prompts per second"]
    lines = [
        f"Batch of {first['batch']}, {first['visual_tokens']} visual and {first['text_tokens']} text tokens per prompt; "
        f"total is {first['new_tokens']} new tokens.",
        "",
        "| plan | " + " | ".join(columns) + " |",
        "|---" + "|--:" * len(columns) + "|",
    ]
    for row in rows:
        if "error" not in row:
            cells = [*(_cell(row["time"], kind, row["method"] == STOCK) for kind in _COLUMNS)]
            cells += [_memory(row["time"], what, row["method"] == STOCK) for what in ("cache", "peak")]
            lines.append(f"| {row['label']} | {' | '.join(cells)} | {row['prompts_per_second']:.3g} |")
    return lines


def _cell(time: dict[str, Any], kind: str, stock: bool) -> str:
    if kind not in time:
        return "-"
    if stock:
        return f"{1e3 * time[kind]['seconds']:.4g} ms"
    known = kind == "efficiency"
    ratio, ends = (time[kind], time[f"{kind}_quartiles"]) if known else (time[kind]["over"], time[kind]["quartiles"])
    shaky = "~" if ends[1] - ends[0] > SHAKY * ratio else ""
    return f"{shaky}{ratio:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _memory(time: dict[str, Any], what: str, stock: bool) -> str:
    name = "cache_bytes" if what == "cache" else "peak_memory"
    if time[name] is None:
        return "-"
    return f"{time[name] / 2**20:.4g} MiB" if stock else f"{time[f'{what}_over']:.3f}"
