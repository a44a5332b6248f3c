"""Accuracy and time of plans on the same samples, next to the uncompressed model.

Accuracy: greedy answers in left-padded batches. Every picture is encoded once and all plans start from these features,
since none of them changes what the tower computes; plans that shrink the picture itself encode their own. Time: whole
prompts on fixed batches, all plans taking turns, as ratios to the uncompressed model in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..attach import PIXELS, compress
from ..errors import FoveateError
from ..method import STAGES
from ..plan import Plan
from ..report import Report
from .environment import environment
from .grid.results import STOCK, Entry
from .stats import accuracy, paired
from .tasks import Task
from .times.timing import Job, interleaved


def grid(methods: Sequence[str], keeps: Sequence[object]) -> list[Entry]:
    """The uncompressed model, then every method at every budget."""
    entries = [Entry(STOCK, None, STOCK)]
    for method in methods:
        for keep in keeps:
            plan = Plan.of(method, keep)
            entries.append(Entry(str(plan), plan, method, str(keep)))
    return entries


def measure(
    model: Any,
    processor: Any,
    task: Task,
    entries: Sequence[Entry],
    *,
    batch: int = 16,
    max_new_tokens: int = 10,
    repeats: int = 0,
    time_batch: int = 4,
    tick: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure plans on a task.

    Args:
        model, processor: as loaded by transformers.
        task: what to ask.
        entries: rows, :func:`grid` makes them; the first must be the uncompressed model.
        batch: samples per batch.
        max_new_tokens: longest answer.
        repeats: timed rounds; 0 leaves times out.
        time_batch: samples in the batch that is timed.
        tick: called with "answers" after every batch of a row, and with "times" after every timed call.

    Returns:
        Plain data: ``rows`` in the order of ``entries``, with ``slices`` inside each; ``environment``; ``task``. A row
        that a model or method refuses holds ``error`` instead of numbers.
    """
    said, tokens, errors = answers(model, processor, task, entries, batch, max_new_tokens, tick)
    right = {label: [task.correct(*pair) for pair in zip(s, task.samples, strict=True)] for label, s in said.items()}
    names = [s.slice for s in task.samples]
    rows = []
    for entry in entries:
        row: dict[str, Any] = {"label": entry.label, "method": entry.method, "keep": entry.keep}
        rows.append(row)
        if entry.label in errors:
            row["error"] = errors[entry.label]
            continue
        row |= accuracy(right[entry.label])
        row["tokens_per_image"] = tokens[entry.label]
        row["slices"] = {
            name: accuracy([r for r, n in zip(right[entry.label], names, strict=True) if n == name])
            for name in task.slices()
        }
        if entry.plan is not None:
            row["against_uncompressed"] = paired(right[entry.label], right[STOCK])
            same = [a == b for a, b in zip(said[entry.label], said[STOCK], strict=True)]
            row["same_answer"] = sum(same) / max(1, len(same))
    if repeats:
        fine = [e for e in entries if e.label not in errors]
        for label, found in times(model, processor, task, fine, repeats, time_batch, tick).items():
            next(row for row in rows if row["label"] == label)["time"] = found
    parameter = next(model.parameters())
    return {
        "task": task.name,
        "note": task.note,
        "samples": len(task.samples),
        "slices": task.slices(),
        "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
        "rows": rows,
        "answers": said,
    }


def answers(
    model: Any,
    processor: Any,
    task: Task,
    entries: Sequence[Entry],
    batch: int,
    max_new_tokens: int,
    tick: Callable[[str], None] | None = None,
) -> tuple[dict[str, list[str]], dict[str, float], dict[str, str]]:
    """Greedy answers of every entry to every sample.

    Returns:
        Answers by label in the order of the samples, content tokens per image by label, errors by label.
    """
    order = sorted(range(len(task.samples)), key=lambda i: task.slices().index(task.samples[i].slice))
    said: dict[str, list[str]] = {e.label: [""] * len(task.samples) for e in entries}
    tokens = {e.label: [0, 0] for e in entries}  # tokens, images
    errors: dict[str, str] = {}
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        part = [task.samples[i] for i in places]
        fed = prepared(model, task.inputs(processor, part))
        shared = encoded(model, fed, entries)
        counted = False
        for entry in entries:
            if entry.label not in errors:
                try:
                    reply = respond(model, processor, fed, entry.plan, shared, max_new_tokens)
                except FoveateError as error:
                    errors[entry.label] = str(error)
                else:
                    for i, text in zip(places, reply.said, strict=True):
                        said[entry.label][i] = text
                    if reply.report is not None:
                        _add(tokens[entry.label], reply.report.tokens_out, len(reply.report.images))
                        if not counted:
                            _add(tokens[STOCK], reply.report.tokens_in, len(reply.report.images))
                            counted = True
            if tick is not None:
                tick("answers")
    return said, {label: t / max(1, images) for label, (t, images) in tokens.items()}, errors


@dataclass(frozen=True)
class Reply:
    """What a batch was answered, and the report of the run (None for the uncompressed model)."""

    said: list[str]
    report: Report | None


def respond(
    model: Any, processor: Any, fed: dict[str, Any], plan: Plan | None, features: Any, max_new_tokens: int
) -> Reply:
    """Greedy answers of one batch under a plan.

    Args:
        fed: what :func:`prepared` made.
        plan: None for the uncompressed model.
        features: what :func:`encoded` made of ``fed``; plans that shrink the picture encode their own.
    """
    with nullcontext() if plan is None else compress(model, plan, processor=processor) as run:
        out = _generate(model, fed, None if plan is not None and _shrinks(plan) else features, max_new_tokens)
    texts = processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
    return Reply([text.strip() for text in texts], None if run is None else run.report)


def times(
    model: Any,
    processor: Any,
    task: Task,
    entries: Sequence[Entry],
    repeats: int,
    batch: int,
    tick: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Times of one fixed batch under every entry, as ratios to the uncompressed model.

    Returns:
        By label: ``prefill`` (language model from ready features, choosing included), ``choosing`` (its part spent
        choosing and rearranging) and ``first_token`` (vision tower included).
    """
    fed = prepared(model, task.inputs(processor, list(task.samples[:: max(1, len(task.samples) // batch)][:batch])))
    chosen: dict[str, list[float]] = {e.label: [] for e in entries}

    def work(entry: Entry, whole: bool) -> Job:
        features: list[Any] = []  # encoded in the warm-up round

        @contextmanager
        def go() -> Iterator[Callable[[], Any]]:
            with nullcontext() if entry.plan is None else compress(model, entry.plan, processor=processor) as run:
                if not whole and not features:
                    features.append(_encode(model, fed))
                yield lambda: prefill(model, fed, None if whole else features[0])
                if run is not None and run.report is not None and not whole:
                    chosen[entry.label].append(run.report.seconds)

        return go

    jobs = {f"{e.label}|{whole}": work(e, whole) for e in entries for whole in (False, True)}
    device = str(next(model.parameters()).device)
    found = interleaved(jobs, repeats, device=device, tick=None if tick is None else lambda: tick("times"))
    stock, stock_whole = found[f"{STOCK}|False"], found[f"{STOCK}|True"]
    out = {}
    for entry in entries:
        mine = chosen[entry.label][1:]
        out[entry.label] = {
            "prefill": found[f"{entry.label}|False"].over(stock),
            "choosing": statistics.median(mine) / stock.median() if mine else 0.0,
            "first_token": found[f"{entry.label}|True"].over(stock_whole),
        }
    return out


def _add(total: list[int], tokens: int, images: int) -> None:
    total[0] += tokens
    total[1] += images


# -- one batch ---------------------------------------------------------------------------------------------------------


def prepared(model: Any, batch: Any) -> dict[str, Any]:
    """A processor's batch on the model's device, pixels in its dtype."""
    parameter = next(model.parameters())
    moved = {k: v.to(parameter.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    for name in PIXELS:
        if isinstance(moved.get(name), torch.Tensor):
            moved[name] = moved[name].to(parameter.dtype)
    return moved


def encoded(model: Any, fed: dict[str, Any], entries: Sequence[Entry]) -> Any:
    """Encoder output from which every entry's plan can start, or None if there is nothing to encode."""
    steps = [s for e in entries if e.plan is not None and not _shrinks(e.plan) for s in e.plan.steps]
    steps = [s for s in steps if s.stage not in ("layers", "cache")]  # which need nothing of the encoder
    if not any(fed.get(name) is not None for name in PIXELS):
        return None
    steps.sort(key=lambda s: STAGES.index(s.stage))
    # One plan that holds every step collects whatever any of them needs. It only encodes, it never sees a prompt.
    # Plans without such steps still start from an output that a run has seen.
    some = Plan(tuple(steps)) if steps else Plan.of("stride", 1.0)
    with compress(model, some) if any(e.plan is not None for e in entries) else nullcontext():
        return _encode(model, fed)


@torch.inference_mode()
def _encode(model: Any, fed: dict[str, Any]) -> Any:
    from ..families import adapt

    family = adapt(model)
    core: Any = family.core
    return core.get_image_features(**family.encoder_arguments(fed), return_dict=True)


@torch.inference_mode()
def _generate(model: Any, fed: dict[str, Any], features: Any, max_new_tokens: int) -> torch.Tensor:
    return model.generate(**_start(fed, features), max_new_tokens=max_new_tokens, do_sample=False)


@torch.inference_mode()
def prefill(model: Any, fed: dict[str, Any], features: Any = None) -> Any:
    """The prompt's forward call as ``generate`` makes it: a cache, and logits of the last position only."""
    return model(**_start(fed, features), use_cache=True, logits_to_keep=1)


def _start(fed: dict[str, Any], features: Any) -> dict[str, Any]:
    if features is None:
        return fed
    rest = {name: value for name, value in fed.items() if name not in PIXELS}
    return rest | {"mm_encoder_outputs": {"image": features}}


def _shrinks(plan: Plan) -> bool:
    return any(step.stage in ("input", "encoder") for step in plan.steps)
