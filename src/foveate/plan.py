"""A plan: methods in the order they run, each with its place and budget.

The same text works in Python, in the shell, on a server and in result files::

    divprune:keep=0.25
    divprune:keep=0.5 > visionzip:keep=64,contextual=0.2
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from . import registry
from .budget import Budget
from .errors import PlanError
from .method import RESERVED, STAGES, Method, Recipe, read, write

POSITIONS = ("original", "contiguous", "preserved")
CARRIED = 8  # positions that a merged token carries if "preserved" names no number, as in the paper


@dataclass(frozen=True)
class Step:
    """A method at a place, with its budget.

    Attributes:
        method: the method with its options.
        keep: its budget, or None until the plan gets one.
        stage: where it runs, one of :data:`foveate.method.STAGES`.
        scope: what else it cuts besides the states that flow on ("cache" of earlier layers, "heads" apart).
    """

    method: Method
    keep: Budget | None
    stage: str
    scope: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        options = {}
        if self.keep:
            options["keep"] = str(self.keep)
            if self.keep.split != "proportional":
                options["split"] = self.keep.split
        if self.stage != self.method.card.stages[0]:
            options["at"] = self.stage
        options |= {name: write(value) for name, value in self.method.options().items()}
        return self.method.name + (":" if options else "") + ",".join(f"{k}={v}" for k, v in options.items())


@dataclass(frozen=True)
class Plan:
    """Steps in the order of their stages, and how kept tokens are numbered.

    Attributes:
        steps: one or more, stages never going backwards.
        positions: "original" (a kept token keeps its position), "contiguous" (positions are counted anew) or "preserved"
            (as original, and a merged token carries up to 8 of the positions that went into it; "preserved:4", up to 4).
    """

    steps: tuple[Step, ...]
    positions: str = "original"

    def __post_init__(self) -> None:
        if not self.steps:
            raise PlanError("a plan needs at least one step", hint='"divprune:keep=0.25"')
        name, colon, number = str(self.positions).partition(":")
        counts = name == "preserved" and number.isdecimal() and int(number) > 0
        if name not in POSITIONS or (colon and not counts):
            raise PlanError(f"positions={self.positions!r}", hint="original, contiguous, preserved or preserved:4")
        order = [STAGES.index(step.stage) for step in self.steps]
        if order != sorted(order):
            raise PlanError(f"{self}: stages run {', '.join(s.stage for s in self.steps)}", hint=" > ".join(STAGES))

    @classmethod
    def of(cls, plan: object, keep: object = None, positions: str | None = None, split: str | None = None) -> Plan:
        """Read a plan from text, a mapping, a method (class or object), a sequence of these, or another plan.

        Args:
            plan: as above.
            keep: budget of the one step that names none.
            positions: overrides the plan's.
            split: how a "/total" budget is shared over images, see :class:`foveate.budget.Budget`.

        Raises:
            PlanError: unknown method, option or stage; no budget, or more than one step that waits for one.
            KeepError: a budget that cannot be read.
        """
        where = positions
        if isinstance(plan, Plan):
            drafts, where = (
                [_Draft(s.method, s.keep, s.stage, s.scope) for s in plan.steps],
                positions or plan.positions,
            )
        elif isinstance(plan, Mapping) and "steps" in plan:
            if unknown := set(plan) - {"steps", "positions"}:
                raise PlanError(f"a plan has no {', '.join(sorted(unknown))}", hint="steps, positions")
            drafts = [draft for entry in plan["steps"] for draft in _read(entry)]
            where = positions or plan.get("positions")
        else:
            parts = plan if isinstance(plan, Sequence) and not isinstance(plan, str) else [plan]
            drafts = [draft for part in parts for draft in _read(part)]
            if isinstance(plan, Mapping):
                where = positions or plan.get("positions")
        bare = [i for i, draft in enumerate(drafts) if draft.keep is None]
        waiting = [i for i in bare if not drafts[i].settled] or (bare if keep is not None else [])
        if keep is not None and len(waiting) == 1:
            drafts[waiting[0]] = replace(drafts[waiting[0]], keep=Budget.parse(keep))
        elif keep is not None and not waiting:
            raise PlanError(f"keep={keep!r} was given, but every step has its own", hint="leave one of them out")
        elif waiting:
            names = ", ".join(drafts[i].method.name for i in waiting)
            raise PlanError(f"no budget for {names}", hint='keep=0.25, or in the plan: "name:keep=64"')
        steps = [step for draft in drafts for step in draft.steps(split)]
        return cls(tuple(steps), where or "original")

    @property
    def carried(self) -> int:
        """Positions that a merged token carries at most; 0 unless they are preserved."""
        name, _, number = self.positions.partition(":")
        return int(number or CARRIED) if name == "preserved" else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which :meth:`of` makes the same plan."""
        steps = []
        for step in self.steps:
            entry: dict[str, Any] = {"method": step.method.name, "stage": step.stage}
            if step.keep:
                entry["keep"] = str(step.keep)
                if step.keep.split != "proportional":
                    entry["split"] = step.keep.split
            steps.append(entry | ({"options": options} if (options := step.method.options()) else {}))
        return {"steps": steps, "positions": self.positions}

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that :meth:`save` wrote.

        Raises:
            PlanError: if the file is not such a plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except ValueError as error:
            raise PlanError(f"{path} is not JSON: {error}", hint="Plan.save writes such files") from error
        return cls.of(data)

    def __str__(self) -> str:
        """The steps as text. How kept tokens are numbered is not part of it: that is ``positions``."""
        return " > ".join(str(step) for step in self.steps)

    def describe(self) -> str:
        """The plan as a pipeline, one line per stage, for people."""
        lines = ["image"]
        for stage in STAGES:
            for step in self.steps:
                if step.stage == stage:
                    lines.append(f"  -> {stage:<10} {step.method.name:<14} keep {step.keep}")
        return "\n".join([*lines, f"  -> language model ({self.positions} positions)"])


@dataclass(frozen=True)
class _Draft:
    """A step, or a recipe, that may still wait for its budget."""

    method: Method | Recipe
    keep: Budget | None = None
    stage: str | None = None
    scope: frozenset[str] = field(default_factory=frozenset)

    @property
    def settled(self) -> bool:
        """Whether it needs no budget."""
        return isinstance(self.method, Method) and self.method.settled

    def steps(self, split: str | None) -> list[Step]:
        """What it comes to; a recipe becomes several steps."""
        if self.keep is None:
            assert isinstance(self.method, Method)
            return [Step(self.method, None, self.stage or self.method.card.stages[0], self.scope)]
        budget = self.keep if split is None else Budget.parse(replace(self.keep, split=split), split)
        if isinstance(self.method, Method):
            return [Step(self.method, budget, self.stage or self.method.card.stages[0], self.scope)]
        return [
            Step(m, None if k is None and m.settled else Budget.parse(k, budget.split), stage)
            for m, k, stage in self.method.steps(budget)
        ]


def _read(part: object) -> list[_Draft]:
    if isinstance(part, str):
        return [_from_text(text) for text in _split(part, ">")]
    if inspect.isclass(part) and issubclass(part, (Method, Recipe)):
        part = part()
    if isinstance(part, (Method, Recipe)):
        return [_Draft(part)]
    if isinstance(part, Step):
        return [_Draft(part.method, part.keep, part.stage, part.scope)]
    if isinstance(part, Mapping):
        return [_from_dict(part)]
    raise PlanError(f"{part!r} is not a plan", hint='text such as "divprune:keep=0.25", a method, or a list of these')


def _from_dict(entry: Mapping) -> _Draft:
    unknown = set(entry) - {"method", "keep", "stage", "options", "positions", "split"}
    if unknown or "method" not in entry:
        raise PlanError(
            f"a step is {dict(entry)!r}", hint='{"method": "divprune", "keep": 0.25, "stage": ..., "options": {...}}'
        )
    return _build(entry["method"], entry.get("options", {}), entry.get("keep"), entry.get("stage"), entry.get("split"))


def _from_text(text: str) -> _Draft:
    name, _, tail = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, _split(tail, ",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise PlanError(f"{item!r} in plan {text!r}", hint="options are written name=value")
        if key in options:
            raise PlanError(f"{key!r} stands twice in plan {text!r}", hint="leave one of them out")
        options[key] = read(value.strip())
    keep, stage, split = (options.pop(key, None) for key in ("keep", "at", "split"))
    return _build(name.strip(), options, keep, stage, split)


def _split(text: str, mark: str) -> list[str]:
    """Split at ``mark``, but not inside quotes and brackets, where it belongs to an option's value."""
    pieces, depth, quote, start, escaped = [], 0, "", 0, False
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and not escaped else quote
            escaped = c == "\\" and not escaped
        elif c in "'\"":
            quote = c
        elif c == mark and depth == 0:
            pieces.append(text[start:i].strip())
            start = i + 1
        else:
            depth += (c in "([{") - (c in ")]}")
    return [*pieces, text[start:].strip()]


def _build(name: str, options: Mapping[str, Any], keep: object, stage: str | None, split: str | None) -> _Draft:
    cls = registry.get(name)
    known = [f.name for f in fields(cls)]
    for option in options:
        if option not in known:
            raise PlanError(f"{name} has no option {option!r}", hint=f"its options: {', '.join([*RESERVED, *known])}")
    given = {option: _frozen(value) for option, value in options.items()}
    types = get_type_hints(cls)
    for option, value in given.items():
        kind = types[option]
        if kind in (bool, int, float, str) and not _fits(value, kind):
            raise PlanError(f"{name}: {option}={value!r} is not of type {kind.__name__}")
    try:
        method = cls(**given)
    except (TypeError, ValueError) as error:
        raise PlanError(f"{name} refuses its options {given}: {error}") from error
    budget = None if keep is None else Budget.parse(keep, split or "proportional")
    if split is not None and budget is None:
        raise PlanError(f"{name} has a split but no budget", hint="keep=2048/total,split=equal")
    if isinstance(method, Recipe) and stage is not None:
        raise PlanError(f"{name} is a recipe, which sets the stages of its steps", hint=f"leave out at={stage}")
    if isinstance(method, Method) and stage is not None and stage not in method.card.stages:
        raise PlanError(f"{name} does not run at stage {stage!r}", hint=f"at={' or at='.join(method.card.stages)}")
    return _Draft(method, budget, stage)


def _fits(value: object, kind: type) -> bool:
    """Whether a value is of a simple type. A whole number may stand for a float; a truth value is not a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _frozen(value: Any) -> Any:
    """JSON has no tuples, and a method, being frozen, should hold no lists."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
