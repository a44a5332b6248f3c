"""``foveate bench``: methods x budgets x conditions on one model and one set of questions, against the uncompressed model.

Baselines are always there. Every picture is encoded once per condition and all plans start from these features. What was
answered goes to a ledger batch by batch: a run that was killed goes on, one with more methods or budgets measures those. A
batch holds the same questions whatever else is asked, so that an answer never depends on how a grid was cut into runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ... import registry
from ...attach import compress
from ...errors import FoveateError, UnsupportedError
from ...plan import Plan
from ..environment import code, environment
from ..inside import GROUP
from ..runner import _shrinks, encoded, prefill, prepared, respond
from ..tasks import Task
from ..times.clock import measure_time
from ..times.shapes import prompts_by
from .conditions import CLEAN, conditions_of, opening, under
from .ledger import Ledger, identity
from .results import SCHEMA, STOCK, Cell, Entry, Place, build

BASELINES = ("random", "stride", "pool", "resize")
KEEPS = (192, 128, 64, 32)
SEEDS = 3  # of the random baseline
WORDS = 32  # text tokens of the prompt that is timed


@dataclass(frozen=True)
class Preset:
    """What a name stands for on the command line: ``methods`` () are all there are."""

    methods: tuple[str, ...]
    keeps: tuple[int, ...]
    limit: int
    rounds: int


PRESETS = {
    "quick": Preset(("fastervlm", "visionzip", "divprune", "cdpruner", "fastv", "pdrop"), (192, 64), 16, 3),
    "full": Preset((), KEEPS, 50, 3),
}


def entries_of(
    methods: Sequence[str], keeps: Sequence[object], seeds: int = SEEDS, plans: Sequence[object] = ()
) -> list[Entry]:
    """The uncompressed model, the baselines, and every method at every budget; one that has its own runs once.

    Args:
        methods: names.
        keeps: budgets.
        seeds: of the random baseline.
        plans: whole plans besides, in any spelling.

    Raises:
        PlanError, KeepError: unknown names and budgets.
    """
    found = [Entry(STOCK, None, STOCK)]
    for name in dict.fromkeys([*BASELINES, *methods]):
        settled = getattr(registry.get(name)(), "settled", False)
        for keep in [None] if settled else keeps:
            for seed in range(seeds if name == "random" else 1):
                plan = Plan.of({"method": name, "options": {"seed": seed}} if seed else name, keep)
                budget, drawn = "" if keep is None else str(keep), seed if name == "random" else None
                found.append(Entry(str(plan), plan, name, budget, plan.steps[0].stage, drawn))
    for plan in map(Plan.of, plans):
        label = str(plan) if plan.positions == "original" else f"{plan} ({plan.positions} positions)"
        if label not in [entry.label for entry in found]:
            found.append(Entry(label, plan, plan.steps[0].method.name, "", plan.steps[0].stage))
    return found


def asks(plan: Plan | None) -> bool:
    """Whether the question decides what a plan keeps."""
    return plan is not None and any(step.method.card.guidance == "question" for step in plan.steps)


@dataclass(frozen=True)
class Piece:
    """What is measured and noted as one: a plan on a batch of samples at a place."""

    entry: Entry
    place: Place
    number: int
    samples: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.place.key(self.entry.label)}|{self.number}"


class Grid:
    """A grid that can be measured: its rows, its pieces, and what they depend on.

    Args:
        model, processor: as loaded by transformers.
        task: what to ask.
        name: the model's, for readers.
        methods: names; all that are known when None.
        keeps: budgets of each.
        seeds: of the random baseline.
        plans: whole plans besides.
        conditions: of the pictures, besides clean ones; see :func:`foveate.bench.grid.conditions.conditions_of`.
        once: whether samples with earlier turns are also asked with tokens chosen at the first turn, under the plans that
            look at the question.
        batch: samples per batch.
        max_new_tokens: longest answer.
        shard: (i, n): only every n-th batch, from the i-th.

    Raises:
        UnsupportedError: a shard or condition that does not exist; a task without samples.
    """

    def __init__(
        self, model: Any, processor: Any, task: Task, *, name: str = "model", methods: Sequence[str] | None = None,
        keeps: Sequence[object] = KEEPS, seeds: int = SEEDS, plans: Sequence[object] = (),
        conditions: Sequence[str] = (), once: bool = True, batch: int = 16, max_new_tokens: int = 10,
        shard: tuple[int, int] = (1, 1),
    ) -> None:  # fmt: skip
        if not 1 <= shard[0] <= shard[1]:
            raise UnsupportedError(f"there is no part {shard[0]} of {shard[1]}", hint="--shard 1/4 to --shard 4/4")
        if not task.samples:
            raise UnsupportedError("there is nothing to ask", where=task.name)
        self.model, self.processor, self.task, self.name = model, processor, task, name
        self.batch, self.max_new_tokens, self.shard = batch, max_new_tokens, shard
        names = list(registry.classes()) if methods is None else list(methods)
        self.entries = entries_of(names, keeps, seeds, plans)
        self.conditions = conditions_of(conditions)
        slices = task.slices()
        order = sorted(range(len(task.samples)), key=lambda i: slices.index(task.samples[i].slice))
        parts = [tuple(order[start : start + batch]) for start in range(0, len(order), batch)]
        self.batches = list(enumerate(parts))[shard[0] - 1 :: shard[1]]
        self.mine = sorted(i for _, part in self.batches for i in part)
        talks = [i for i in self.mine if getattr(task.samples[i], "history", None)] if once else []
        self.talks = tuple(talks)
        self.rows = [(entry, Place(condition)) for condition in self.conditions for entry in self.entries]
        asked = [entry for entry in self.entries if asks(entry.plan)]
        if once and asked and any(getattr(sample, "history", None) for sample in task.samples):
            self.rows += [(entry, Place(CLEAN, "once")) for entry in [self.entries[0], *asked]]
        self.protocol = {
            "model": name, "methods": names, "keeps": [str(keep) for keep in keeps], "seeds": seeds,
            "plans": [Plan.of(plan).to_dict() for plan in plans], "conditions": self.conditions, "once": once,
            "batch": batch, "max_new_tokens": max_new_tokens, "shard": list(shard),
        }  # fmt: skip

    def pieces(self) -> list[Piece]:
        """Everything to measure, batch by batch, so that a batch is encoded once."""
        found = []
        for condition in self.conditions:
            for number, part in self.batches:
                found += [Piece(e, p, number, part) for e, p in self.rows if p == Place(condition)]
        for i in self.talks:
            found += [Piece(e, p, i, (i,)) for e, p in self.rows if p.selection == "once"]
        return found

    def setting(self) -> dict[str, Any]:
        """What a piece's outcome depends on, besides the plan and the place: plain data."""
        parameter = next(self.model.parameters())
        where = environment(str(parameter.device), str(parameter.dtype).removeprefix("torch."))
        names = ("foveate", "torch", "transformers", "threads", "device", "dtype")
        return {
            "model": {"name": self.name, "class": type(self.model).__name__, "weights": fingerprint(self.model)},
            "task": self.task.name,
            "samples": identity({"samples": [self._told(i) for i in range(len(self.task.samples))]}),
            "batch": self.batch,
            "max_new_tokens": self.max_new_tokens,
            "code": code(),
        } | {name: where[name] for name in names}

    def measure(self, ledger: Ledger, tick: Callable[[Piece], None] | None = None) -> None:
        """Measure what the ledger does not hold yet."""
        held: tuple[Any, Any] | None = None
        for piece in self.pieces():
            if piece.name in ledger:
                continue
            if held is None or held[0] != (piece.place, piece.number):
                held = (piece.place, piece.number), self._fed(piece)
            ledger.put(piece.name, self._measured(piece, *held[1]))
            if tick is not None:
                tick(piece)

    def timed(self) -> list[Entry]:
        """Plans whose times are measured; seeds of one baseline take the same."""
        return [entry for entry in self.entries if entry.plan is not None and not entry.seed]

    def time(self, ledger: Ledger, rounds: int, tick: Callable[[Entry], None] | None = None) -> None:
        """Time the plans whose times the ledger does not hold: one prompt, one picture, in turns with the uncompressed model.

        Args:
            ledger: gets a piece for each plan.
            rounds: that count.
            tick: called after each plan.
        """
        prompts = prompts_by(self.model, self.processor, WORDS)
        todo = [entry for entry in self.timed() if _time_name(entry.label) not in ledger]
        for start in range(0, len(todo), GROUP):
            group = todo[start : start + GROUP]
            found = measure_time(
                self.model, prompts, group, processor=self.processor, batches=(1,), rounds=rounds, sizes=(),
                new_tokens=self.max_new_tokens,
            )  # fmt: skip
            for row in found["rows"]:
                if _time_name(row["label"]) not in ledger:
                    ledger.put(_time_name(row["label"]), row.get("time"))
            for entry in group if tick else ():
                tick(entry)  # type: ignore[misc]

    def result(self, ledger: Ledger, command: str) -> dict[str, Any]:
        """The result of a ledger that holds every piece; with times, where it holds them."""
        cells: dict[str, Cell] = {place.key(entry.label): Cell() for entry, place in self.rows}
        back = {i: new for new, i in enumerate(self.mine)}
        for piece in self.pieces():
            noted = ledger[piece.name]
            at = [back[i] for i in piece.samples] if "said" in noted else []
            cells[piece.place.key(piece.entry.label)].add(noted | {"at": at})
        parameter = next(self.model.parameters())
        text = getattr(self.model.config, "get_text_config", lambda: self.model.config)()
        head = {
            "bench": "grid",
            "schema": SCHEMA,
            "command": command,
            "identity": identity(self.setting()),
            "protocol": self.protocol,
            "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
            "model": {
                "name": self.name, "class": type(self.model).__name__,
                "parameters": sum(p.numel() for p in self.model.parameters()), "layers": text.num_hidden_layers,
            },
            "task": self.task.name,
            "note": self.task.note,
            "chance": _chance(self.task),
        }  # fmt: skip
        samples = [self._told(i) | {"place": i} for i in self.mine]
        return with_times(build(head, samples, self.rows, cells), ledger)

    def _told(self, i: int) -> dict[str, Any]:
        sample = self.task.samples[i]
        told = {"id": str(getattr(sample, "id", i)), "slice": sample.slice, "question": sample.question}
        return told | {"answer": sample.answer if isinstance(sample.answer, str) else list(sample.answer or ())}

    def _fed(self, piece: Piece) -> tuple[dict[str, Any], Any]:
        """A piece's batch and its features, from which all plans start."""
        task = under(self.task, piece.place.condition)
        samples = [task.samples[i] for i in piece.samples]
        if piece.place.selection == "once":
            samples = [opening(sample) for sample in samples]
        fed = prepared(self.model, task.inputs(self.processor, samples))
        return fed, encoded(self.model, fed, [e for e, p in self.rows if p == piece.place])

    def _measured(self, piece: Piece, fed: dict[str, Any], features: Any) -> dict[str, Any]:
        plan, once = piece.entry.plan, piece.place.selection == "once"
        samples = [self.task.samples[i] for i in piece.samples]
        try:
            if once:
                whole = prepared(self.model, self.task.inputs(self.processor, samples))
                said, report = continued(self.model, self.processor, fed, whole, plan, features, self.max_new_tokens)
            else:
                reply = respond(self.model, self.processor, fed, plan, features, self.max_new_tokens)
                said, report = reply.said, reply.report
        except FoveateError as error:
            return {"error": str(error)}
        noted: dict[str, Any] = {"said": said}
        noted["right"] = [bool(self.task.correct(text, s)) for text, s in zip(said, samples, strict=True)]
        if report is not None:
            noted |= {"images": len(report.images), "before": report.tokens_in, "tokens": report.tokens_out}
            noted["layers"] = sum(image.average for image in report.images)
        return noted


@torch.inference_mode()
def continued(
    model: Any, processor: Any, first: dict[str, Any], whole: dict[str, Any], plan: Plan | None, features: Any,
    max_new_tokens: int,
) -> tuple[list[str], Any]:  # fmt: skip
    """Answers to the last question of a conversation whose picture was read, and thinned out, at its first one.

    Args:
        first, whole: prompts of one sample: up to its first question, and up to its last.
        plan: what thins it out; None for the uncompressed model.
        features: of ``first``.

    Raises:
        UnsupportedError: if the whole conversation does not begin with its first turn.
    """
    ids, begun = whole["input_ids"], first["input_ids"].shape[1]
    if not torch.equal(ids[:, :begun], first["input_ids"]):
        raise UnsupportedError("the prompt of a later turn does not begin with that of the first one")
    with nullcontext() if plan is None else compress(model, plan, processor=processor) as run:
        cache = prefill(model, first, None if plan is not None and _shrinks(plan) else features).past_key_values
        mask = torch.ones_like(ids)
        out = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=False
        )
    texts = processor.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts], None if run is None else run.report


def with_times(result: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    """A result with the times that a ledger holds, in the rows on clean pictures."""
    for row in result["rows"]:
        usual = row["condition"] == CLEAN and row["selection"] == "turn" and "error" not in row
        if usual and _time_name(row["label"]) in ledger and (time := ledger[_time_name(row["label"])]):
            row["time"] = time
    return result


def _time_name(label: str) -> str:
    return f"time|{label}"


def fingerprint(model: Any) -> str:
    """16 hexadecimal digits that tell weights apart: of the configuration, and of a few numbers of every parameter."""

    def told(value: Any) -> Any:  # where a model was read from does not change what it says
        if isinstance(value, dict):
            return {str(k): told(v) for k, v in value.items() if k not in ("_name_or_path", "transformers_version")}
        return value

    found = hashlib.sha256(json.dumps(told(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(parameter.detach().flatten()[:8].double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _chance(task: Task) -> dict[str, float]:
    """What needs no picture, by slice, where the samples know."""
    from ... import testbed

    if not all(hasattr(sample, "chance") for sample in task.samples):
        return {}
    return {name: testbed.chance_level([s for s in task.samples if s.slice == name]) for name in task.slices()}
