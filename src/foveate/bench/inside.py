"""``foveate bench inside``: methods between the language model's layers at equal arithmetic, and of its cache at equal bytes.

Arithmetic: the products of the decoder layers in a prefill plus those that a method makes itself, over the decoder layers'
of the uncompressed model, as :mod:`foveate.bench.flops` counts them on a few prompts. For every share asked for, each
method's ``keep`` is searched that comes nearest; so are those of a few methods before the model. Tower, connector and head
do the same in all of them, so that equal shares are equal prefills. What takes no ``keep`` runs as it comes.

Bytes: what keys and values take up after the prompt, measured on the cache that the model returns, over the uncompressed
model's. Each cache method's ``keep`` is searched in the same way.

Answers are decoded on whatever cache is left. Times are ratios to the uncompressed model in the same rounds, which also
timed that model a second time: ``control`` is that over itself, the noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .. import registry
from ..attach import compress
from ..errors import FoveateError, UnsupportedError
from ..plan import Plan
from ..stages.evict import bytes_of
from .environment import environment
from .flops import count
from .runner import STOCK, Entry, _generate, encoded, prefill, prepared
from .stats import accuracy, paired
from .tasks import Task, testbed_task
from .times.timing import Job, interleaved

START, END = "<!-- inside-table:start -->", "<!-- inside-table:end -->"
BEFORE = ("divprune", "random", "pool")  # what dropping before the language model gives for the same arithmetic
FINEST = 1000  # keep is searched in steps of one over this
NEAR = 0.001  # of the target: no search goes on from here
FAR = 0.02  # of the target: the table says so
SHAKY = 0.1  # of a ratio: quartiles further apart are marked
STEPS = 8  # of decoding that are timed together
GROUP = 6  # plans that take turns with the uncompressed model
WORDS = {"before": "before the model", "layers": "between layers", "cache": "cache"}

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """A plan at a target; ``keep`` and ``target`` are None for a method that runs at its defaults."""

    method: str
    kind: str
    target: float | None
    keep: float | None
    plan: Plan | None
    error: str = ""

    @property
    def label(self) -> str:
        return STOCK if self.plan is None else str(self.plan)


def names_of_kind(kind: str, methods: Sequence[str] | None = None) -> list[str]:
    """Known methods, or those of the given names, whose place is "layers" or "cache"."""
    names = registry.classes() if methods is None else methods
    return [name for name in names if registry.get(name).card.stages == (kind,)]


def nearest(rises: Callable[[float], float], target: float, known: dict[int, float]) -> float:
    """The keep, a multiple of 0.001 below 1.0, at which a function that rises with it comes nearest to a target.

    Args:
        rises: of keep; may be a flight of steps.
        known: values by keep in thousandths, which is read and filled.
    """

    def at(i: int) -> float:
        if i not in known:
            known[i] = rises(i / FINEST)
        return known[i]

    low = max((i for i, value in known.items() if value < target), default=1)
    high = min((i for i, value in known.items() if value >= target and i > low), default=FINEST - 1)
    while high - low > 1 and min(abs(at(i) - target) for i in (low, high)) > NEAR * target:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    return min((low, high), key=lambda i: abs(at(i) - target)) / FINEST


class Gauge:
    """What plans cost on a few prompts, over the uncompressed model: arithmetic and bytes of the cache."""

    def __init__(self, model: Any, processor: Any, prompts: Sequence[dict[str, Any]]) -> None:
        self.model, self.processor, self.prompts = model, processor, prompts
        self.features = [_features(model, fed) for fed in prompts]
        self.stock = [count(model, fed) for fed in prompts]
        self.full = self._bytes(None)
        self._costs: dict[str, tuple[float, float]] = {}
        self._sizes: dict[str, float] = {}

    def arithmetic(self, plan: Plan) -> tuple[float, float]:
        """Layers and method over the uncompressed layers, and whole prefills over whole prefills."""
        if (name := str(plan)) not in self._costs:
            both = zip(self.prompts, self.stock, strict=True)
            found = [count(self.model, fed, plan, processor=self.processor, stock=stock) for fed, stock in both]
            layers = sum(f.part("layers") + f.method for f in found) / sum(f.part("layers") for f in self.stock)
            whole = sum(f.prefill for f in found) / sum(f.prefill for f in self.stock)
            self._costs[name] = layers, whole
        return self._costs[name]

    def cache(self, plan: Plan) -> float:
        """Bytes of keys and values after the prompt over the uncompressed model's."""
        if (name := str(plan)) not in self._sizes:
            self._sizes[name] = self._bytes(plan) / self.full
        return self._sizes[name]

    def _bytes(self, plan: Plan | None) -> int:
        each = zip(self.prompts, self.features, strict=True)
        with _attached(self.model, plan, self.processor):
            return sum(bytes_of(prefill(self.model, *one).past_key_values) for one in each)


def measure_inside(
    model: Any,
    processor: Any,
    *,
    shares: Sequence[float] = (0.7, 0.5, 0.35), sizes: Sequence[float] = (0.5, 0.25, 0.1),
    methods: Sequence[str] | None = None, samples: int = 50, prompts: int = 2, repeats: int = 7, batch: int = 16,
    time_batch: int = 2, task: Task | None = None, command: str = "foveate bench inside", tick: Tick | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare methods between the layers at equal arithmetic, and of the cache at equal bytes.

    Args:
        model, processor: the testbed.
        shares: of the decoder layers' arithmetic.
        sizes: of the cache's bytes.
        methods: names; all between the layers and of the cache when None. Methods before the model come along.
        samples: questions per slice; batch: of them at a time.
        prompts: on which arithmetic and bytes are counted, spread over the samples.
        repeats: timed rounds that count; time_batch: prompts in the batch that is timed.
        task: other questions than the testbed's.
        command: what made the numbers, for their readers.
        tick: called with what runs, steps done and steps in all.

    Returns:
        Plain data: ``rows``, the first the uncompressed model; ``environment``; ``task``.
    """
    for name in methods or ():
        if registry.get(name).card.stages not in (("layers",), ("cache",)):
            raise UnsupportedError(f"{name} works elsewhere than between the layers or on the cache")
    task, tick = task or testbed_task(limit=samples), tick or (lambda what, done, total: None)
    gauge = Gauge(model, processor, [prepared(model, task.inputs(processor, [s])) for s in _spread(task, prompts)])
    rows = [Row(STOCK, "", None, None, None), *_search(gauge, shares, sizes, methods, tick)]
    plans = {row.label: row.plan for row in rows if not row.error}
    times, control = _times(model, processor, _spread(task, time_batch), task, plans, repeats, tick)
    right, errors = _right(model, processor, task, plans, batch, tick)
    slices = [s.slice for s in task.samples]
    out: list[dict[str, Any]] = []
    for row in rows:
        made: dict[str, Any] = {"method": row.method, "kind": row.kind, "target": row.target, "keep": row.keep}
        out.append(made)
        made["plan"] = "" if row.plan is None else str(row.plan)
        if error := row.error or errors.get(row.label):
            made["error"] = error
            continue
        made["layers_share"], made["prefill_share"] = (1.0, 1.0) if row.plan is None else gauge.arithmetic(row.plan)
        made["cache_share"] = 1.0 if row.plan is None else gauge.cache(row.plan)
        made |= accuracy(right[row.label])
        made["slices"] = {
            name: accuracy([r for r, s in zip(right[row.label], slices, strict=True) if s == name])
            for name in task.slices()
        }
        made["worst"] = min(task.slices(), key=lambda name: made["slices"][name]["accuracy"])
        if row.plan is not None:
            made["against_uncompressed"] = paired(right[row.label], right[STOCK])
        made |= times[row.label]
    parameter = next(model.parameters())
    return {
        "bench": "inside", "command": command, "task": task.name, "note": task.note, "samples": len(task.samples),
        "slices": task.slices(), "shares": list(shares), "sizes": list(sizes), "prompts": len(gauge.prompts),
        "repeats": repeats, "time_batch": time_batch, "steps": STEPS, "control": control,
        "layers_flops": sum(f.part("layers") for f in gauge.stock),
        "prefill_flops": sum(f.prefill for f in gauge.stock), "cache_bytes": gauge.full,
        "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
        "rows": out,
    }  # fmt: skip


def _spread(task: Task, n: int) -> list[Any]:
    return list(task.samples[:: max(1, len(task.samples) // n)][:n])


def _attached(model: Any, plan: Plan | None, processor: Any) -> AbstractContextManager[Any]:
    return nullcontext() if plan is None else compress(model, plan, processor=processor)


def _features(model: Any, fed: dict[str, Any]) -> Any:
    """Encoder output that serves the methods before the model, and all that look at nothing of the tower."""
    return encoded(model, fed, [Entry(name, Plan.of(name, 0.5)) for name in BEFORE])


# -- the rows ----------------------------------------------------------------------------------------------------------


def _search(
    gauge: Gauge, shares: Sequence[float], sizes: Sequence[float], methods: Sequence[str] | None, tick: Tick
) -> list[Row]:
    """A row for each method and target. A plan that is nearest to several targets is a row at each."""
    kinds: list[tuple[str, list[str], Sequence[float], Callable[[Plan], float]]] = [
        ("before", list(BEFORE), shares, lambda plan: gauge.arithmetic(plan)[0]),
        ("layers", names_of_kind("layers", methods), shares, lambda plan: gauge.arithmetic(plan)[0]),
        ("cache", names_of_kind("cache", methods), sizes, gauge.cache),
    ]
    rows, done, total = list[Row](), 0, sum(len(names) for _, names, _, _ in kinds)
    for kind, names, targets, cost in kinds:
        for name in names:
            rows += _rows(gauge, name, kind, targets, cost)
            done += 1
            tick("search", done, total)
    return rows


def _rows(gauge: Gauge, name: str, kind: str, targets: Sequence[float], cost: Callable[[Plan], float]) -> Iterator[Row]:
    known: dict[int, float] = {}
    method: Any = registry.get(name)()
    settled = getattr(method, "settled", False)
    for target in [None] if settled else sorted(targets, reverse=True):
        keep, plan = None, Plan.of(name, None if settled else 0.5)
        try:
            if target is not None:
                keep = nearest(lambda share: cost(Plan.of(name, share)), target, known)
                plan = Plan.of(name, keep)
            gauge.arithmetic(plan), gauge.cache(plan)
            yield Row(name, kind, target, keep, plan)
        except FoveateError as error:
            yield Row(name, kind, target, keep, plan, str(error))


# -- answers -----------------------------------------------------------------------------------------------------------


def _right(
    model: Any, processor: Any, task: Task, plans: dict[str, Plan | None], batch: int, tick: Tick
) -> tuple[dict[str, list[bool]], dict[str, str]]:
    """Whether each plan answers each sample, and errors, by label. Every picture is encoded once."""
    order = sorted(range(len(task.samples)), key=lambda i: task.slices().index(task.samples[i].slice))
    right, errors = {label: [False] * len(order) for label in plans}, dict[str, str]()
    starts = range(0, len(order), batch)
    for start in starts:
        places = order[start : start + batch]
        fed = prepared(model, task.inputs(processor, [task.samples[i] for i in places]))
        features = _features(model, fed)
        for number, (label, plan) in enumerate(plans.items()):
            tick("answers", start // batch * len(plans) + number + 1, len(starts) * len(plans))
            if label in errors:
                continue
            try:
                with _attached(model, plan, processor):
                    out = _generate(model, fed, features, 10)
            except FoveateError as error:
                errors[label] = str(error)
                continue
            texts = processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(places, texts, strict=True):
                right[label][i] = task.correct(text.strip(), task.samples[i])
    return right, errors


# -- times -------------------------------------------------------------------------------------------------------------


def _times(
    model: Any, processor: Any, part: list[Any], task: Task, plans: dict[str, Plan | None], repeats: int, tick: Tick
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Prefills and decoding steps of one batch, by label, and the noise. Features are ready; choosing is included."""
    fed = prepared(model, task.inputs(processor, part))
    features = _features(model, fed)

    def job(plan: Plan | None, decode: bool) -> Job:
        @contextmanager
        def go() -> Iterator[Callable[[], Any]]:
            with _attached(model, plan, processor):
                out = prefill(model, fed, features) if decode else None
                yield lambda: _decode(model, fed, out) if decode else prefill(model, fed, features)

        return go

    labels = [label for label in plans if label != STOCK]
    groups = [labels[i : i + GROUP] for i in range(0, len(labels), GROUP)] or [[]]
    found: dict[str, dict[str, Any]] = {label: {} for label in labels}
    stocks, control = ({"prefill": list[float](), "decode": list[float]()} for _ in range(2))
    for number, group in enumerate(groups, 1):
        turns = {label: plans.get(label) for label in (STOCK, "control", *group)}
        jobs = {f"{kind}|{label}": job(turns[label], kind == "decode") for label in turns for kind in stocks}
        times = interleaved(jobs, repeats, device=str(next(model.parameters()).device))
        for kind in stocks:
            stocks[kind].append(times[f"{kind}|{STOCK}"].median())
            control[kind].append(times[f"{kind}|control"].over(times[f"{kind}|{STOCK}"]))
            for label in group:
                one, other = times[f"{kind}|{label}"], times[f"{kind}|{STOCK}"]
                found[label] |= {kind: one.over(other), f"{kind}_quartiles": list(one.spread(other))}
        tick("times", number, len(groups))
    seconds, step = (statistics.median(medians) for medians in stocks.values())
    found[STOCK] = {
        "prefill": 1.0,
        "decode": 1.0,
        "prefill_seconds": seconds,
        "decode_milliseconds": 1e3 * step / STEPS,
    }
    return found, control


@torch.inference_mode()
def _decode(model: Any, fed: dict[str, Any], out: Any) -> None:
    """A few greedy steps on the cache that a prefill returned."""
    mask = fed["attention_mask"]
    for _ in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        out = model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)


# -- the page ----------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Two tables of a result of :func:`measure_inside`: equal arithmetic, and equal bytes of the cache."""
    stock, where, rows = result["rows"][0], result["environment"], result["rows"][1:]
    off = [[abs(ratio - 1) for ratio in result["control"][kind]] for kind in ("prefill", "decode")]
    noise, most = [statistics.median(each) for each in off], [max(each) for each in off]
    lines = [
        f"{result['note']} {result['samples']} questions of its evaluation set "
        f"({result['samples'] // len(result['slices'])} in each of {len(result['slices'])} slices), greedy answers, 95 % "
        f"intervals: Wilson's of an accuracy, bootstrap of a paired difference. {where['processor']}, "
        f"{where['threads']} thread{'s' * (where['threads'] > 1)}, torch {where['torch']}, transformers "
        f"{where['transformers']}, {where['dtype']} on {where['device']}. Made by `{result['command']}`.",
        "",
        f"Uncompressed: {_percent(stock['accuracy'])} % ({_interval(stock)}), worst slice {_worst(stock)}; a prefill of "
        f"{result['time_batch']} prompts from ready features takes {1e3 * stock['prefill_seconds']:.0f} ms, a decoding "
        f"step {stock['decode_milliseconds']:.1f} ms, and a cache holds "
        f"{result['cache_bytes'] / result['prompts'] / 1e6:.2f} MB per prompt. Times are medians of "
        f"{result['repeats']} rounds over the uncompressed model in the same rounds, with ~ where their quartiles are more "
        f"than a tenth apart: do not rely on these. That model over itself was off by {noise[0]:.3f} (prefill) and "
        f"{noise[1]:.3f} (decoding) in the median group of {GROUP} plans, by {most[0]:.3f} and {most[1]:.3f} in the worst.",
        "",
        "Equal arithmetic. *FLOPs*: products of the decoder layers and of the method itself, counted, over the "
        f"uncompressed decoder layers ({result['prompts']} prompts); the other columns of ratios are measured.",
        "",
    ]
    inside = [row for row in rows if row["kind"] != "cache"]
    lines += _table(inside, "layers_share", ["FLOPs", "prefill", "decoding step", "cache bytes"], "place")
    lines += ["", "Equal bytes of the cache after the prompt, measured on the tensors that the model returns.", ""]
    lines += _table([row for row in rows if row["kind"] == "cache"], "cache_share", ["cache bytes", *_REST], "")
    refused = dict.fromkeys((row["method"], row["error"].split("\n")[0]) for row in rows if "error" in row)
    lines += [f"\n`{name}` is not measured: {error}." for name, error in refused]
    return "\n".join(lines)


_REST = ["FLOPs", "prefill", "decoding step"]
_VALUES = {"FLOPs": "layers_share", "prefill": "prefill", "decoding step": "decode", "cache bytes": "cache_share"}


def _table(rows: list[dict[str, Any]], reached: str, ratios: list[str], place: str) -> list[str]:
    """Lines of one table: target by target, the best first; what has no target last."""
    head = ["target", "method", *([place] if place else []), "keep", *ratios]
    head += ["accuracy, %", "interval", "worst slice", "difference, points", "interval"]
    sides = [*["---"] * (3 if place else 2), *["--:"] * (2 + len(ratios)), ":-:", "---", "--:", ":-:"]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(sides) + "|"]
    fine = [row for row in rows if "error" not in row]
    for row in sorted(fine, key=lambda row: (-(row["target"] or 0), -row["accuracy"], row["method"])):
        target, change = row["target"], row["against_uncompressed"]
        far = target is not None and abs(row[reached] - target) > FAR
        cells = ["default" if target is None else f"{target:g}{' (not reached)' * far}", row["method"]]
        cells += [WORDS[row["kind"]]] if place else []
        cells += ["" if row["keep"] is None else f"{row['keep']:g}", *(_ratio(row, _VALUES[name]) for name in ratios)]
        cells += [_percent(row["accuracy"]), _interval(row), _worst(row), f"{100 * change['difference']:+.1f}"]
        cells += [f"{100 * change['low']:+.1f} to {100 * change['high']:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_quartiles", (0.0, 0.0))
    return f"{'~' if high - low > SHAKY * row[name] else ''}{row[name]:.3f}"


def _worst(row: dict[str, Any]) -> str:
    return f"{row['worst']} {_percent(row['slices'][row['worst']]['accuracy'])}"


def _interval(row: dict[str, Any]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
