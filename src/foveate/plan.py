"""A plan: methods in the order they run, each with its place and budget.

The same text works in Python, in the shell, on a server and in result files::

    divprune:keep=0.25
    divprune:keep=0.5 > visionzip:keep=64,contextual=0.2
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from . import registry
from .budget import Budget
from .errors import PlanError
from .method import STAGES, Method, Recipe

POSITIONS = ("original", "contiguous")


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
        options = {"keep": str(self.keep)} if self.keep else {}
        if self.stage != self.method.card.stages[0]:
            options["at"] = self.stage
        options |= {name: _write(value) for name, value in self.method.options().items()}
        return self.method.name + (":" if options else "") + ",".join(f"{k}={v}" for k, v in options.items())


@dataclass(frozen=True)
class Plan:
    """Steps in the order of their stages, and how kept tokens are numbered.

    Attributes:
        steps: one or more, stages never going backwards.
        positions: "original" (a kept token keeps its position) or "contiguous" (positions are counted anew).
    """

    steps: tuple[Step, ...]
    positions: str = "original"

    def __post_init__(self) -> None:
        if not self.steps:
            raise PlanError("a plan needs at least one step", hint='"divprune:keep=0.25"')
        if self.positions not in POSITIONS:
            raise PlanError(f"positions={self.positions!r}", hint=" or ".join(POSITIONS))
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
            steps, where = list(plan.steps), positions or plan.positions
        elif isinstance(plan, Mapping):
            steps = [step for entry in _entries(plan) for step in _from_dict(entry)]
            where = positions or plan.get("positions")
        else:
            parts = plan if isinstance(plan, Sequence) and not isinstance(plan, str) else [plan]
            steps = [step for part in parts for step in _read(part, keep)]
        waiting = [i for i, step in enumerate(steps) if step.keep is None]
        if keep is not None and len(waiting) == 1:
            steps[waiting[0]] = replace(steps[waiting[0]], keep=Budget.parse(keep))
        elif keep is not None and not waiting:
            raise PlanError(f"keep={keep!r} was given, but every step has its own", hint="leave one of them out")
        elif waiting:
            names = ", ".join(steps[i].method.name for i in waiting)
            raise PlanError(f"no budget for {names}", hint='keep=0.25, or in the plan: "name:keep=64"')
        if split is not None:
            steps = [replace(s, keep=Budget.parse(replace(s.keep, split=split), split)) for s in steps if s.keep]
        return cls(tuple(steps), where or "original")

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which :meth:`of` makes the same plan."""
        steps = []
        for step in self.steps:
            entry: dict[str, Any] = {"method": step.method.name, "keep": str(step.keep), "stage": step.stage}
            if step.keep and step.keep.split != "proportional":
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
        return " > ".join(str(step) for step in self.steps)

    def describe(self) -> str:
        """The plan as a pipeline, one line per stage, for people."""
        lines = ["image"]
        for stage in STAGES:
            for step in self.steps:
                if step.stage == stage:
                    lines.append(f"  -> {stage:<10} {step.method.name:<14} keep {step.keep}")
        return "\n".join([*lines, f"  -> language model ({self.positions} positions)"])


def _entries(plan: Mapping) -> list[Mapping]:
    if "steps" in plan:
        return list(plan["steps"])
    return [plan]


def _from_dict(entry: Mapping) -> list[Step]:
    unknown = set(entry) - {"method", "keep", "stage", "options", "positions", "split"}
    if unknown or "method" not in entry:
        raise PlanError(
            f"a step is {dict(entry)!r}", hint='{"method": "divprune", "keep": 0.25, "stage": ..., "options": {...}}'
        )
    options = dict(entry.get("options", {}))
    budget = Budget.parse(entry["keep"], entry.get("split", "proportional")) if "keep" in entry else None
    return _build(entry["method"], options, budget, entry.get("stage"))


def _read(part: object, keep: object) -> list[Step]:
    if isinstance(part, str):
        return [step for text in part.split(">") for step in _from_text(text)]
    if inspect.isclass(part) and issubclass(part, (Method, Recipe)):
        part = part()
    if isinstance(part, Recipe):
        return [Step(m, Budget.parse(k), stage) for m, k, stage in part.steps(keep)]
    if isinstance(part, Method):
        return [Step(part, None, part.card.stages[0])]
    if isinstance(part, Step):
        return [part]
    if isinstance(part, Mapping):
        return _from_dict(part)
    raise PlanError(f"{part!r} is not a plan", hint='text such as "divprune:keep=0.25", a method, or a list of these')


def _from_text(text: str) -> list[Step]:
    name, _, tail = text.strip().partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, (piece.strip() for piece in tail.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise PlanError(f"{item!r} in plan {text.strip()!r}", hint="options are written name=value")
        options[key.strip()] = _literal(value.strip())
    keep, stage = options.pop("keep", None), options.pop("at", None)
    return _build(name.strip(), options, None if keep is None else Budget.parse(keep), stage)


def _build(name: str, options: dict[str, Any], keep: Budget | None, stage: str | None) -> list[Step]:
    cls = registry.get(name)
    known = {f.name: f for f in fields(cls)}
    for option in options:
        if option not in known:
            listed = ", ".join(["keep", *known])
            raise PlanError(f"{name} has no option {option!r}", hint=f"its options: {listed}")
    try:
        method = cls(**options)
    except (TypeError, ValueError) as error:
        raise PlanError(f"{name} refuses its options {options}: {error}") from error
    if isinstance(method, Recipe):
        return [Step(m, Budget.parse(k), at) for m, k, at in method.steps(keep)]
    stage = stage or method.card.stages[0]
    if stage not in method.card.stages:
        raise PlanError(f"{name} does not run at stage {stage!r}", hint=f"at={' or at='.join(method.card.stages)}")
    return [Step(method, keep, stage)]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _write(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
