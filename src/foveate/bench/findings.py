"""``foveate bench findings``: claims of the field, checked on one model, each by a rule that stood before the numbers.

Claims that the grid can answer read its result file. For the others a few plans, degraded pictures and probes are measured
here; single outcomes go to ledgers beside the result, so that a run that was killed goes on. Every claim is judged twice: by
95 % intervals, and by intervals so wide that all claims together are wrong once in twenty (Bonferroni).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError
from ..families import adapt
from ..plan import Plan
from .claims import choice, cost, general, inside, looks, probes
from .claims.claim import LEVEL, UNDECIDED, VERDICTS, Claim, Judgement, MissingError
from .claims.evidence import Evidence, Outcomes
from .claims.plans import DEGRADED, KINDS, extra
from .claims.probes import TIMED, Probes
from .environment import environment
from .grid.grid import Grid
from .grid.ledger import Ledger
from .tasks import Task, testbed_task

START, END = "<!-- findings-table:start -->", "<!-- findings-table:end -->"
CLAIMS: tuple[Claim, ...] = tuple(
    sorted((*general.CLAIMS, *choice.CLAIMS, *inside.CLAIMS, *cost.CLAIMS), key=lambda claim: int(claim.id[1:]))
)
TABLES = ("grid", "extra", "harsh", "ranked")
LOOKING = ("looks", "place", "stable", "needle")


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        samples: questions per slice for plans that the grid lacks.
        degraded: questions per slice and condition.
        looks: prompts that are looked into.
        rounds: timed rounds.
    """

    samples: int = 25
    degraded: int = 12
    looks: int = 60
    rounds: int = 3


def chosen(ids: Sequence[str] | None) -> list[Claim]:
    """Claims by their numbers; all when None.

    Raises:
        UnsupportedError: on an unknown one.
    """
    known = {claim.id: claim for claim in CLAIMS}
    if unknown := [name for name in ids or () if name not in known]:
        raise UnsupportedError(f"there is no claim {', '.join(unknown)}", hint=", ".join(known))
    return list(CLAIMS) if ids is None else [known[name] for name in known if name in ids]


def measure(
    model: Any,
    processor: Any,
    claims: Sequence[Claim],
    grid: Mapping[str, Any] | None,
    ledgers: Callable[[str], Path | None],
    *,
    scale: Scale = Scale(),
    task: Callable[[int], Task] = lambda limit: testbed_task(limit=limit),
    batch: int = 16,
    tick: Callable[[str], None] | None = None,
) -> Evidence:
    """Measure what claims need and the grid does not hold.

    Args:
        model, processor: the testbed.
        claims: that will be judged.
        grid: a result of the grid, or None.
        ledgers: from a name to the file where pieces are noted, or to None.
        scale: how much.
        task: from questions per slice to the task.
        batch: samples per batch.
        tick: called with what was measured.
    """
    tick = tick or (lambda what: None)
    needs = {need for claim in claims for need in claim.needs}
    depth = adapt(model).decoder_layers()
    tables: dict[str, Outcomes] = {} if grid is None else {"grid": Outcomes.of(grid)}
    found: dict[str, Any] = {}
    wanted: dict[str, tuple[int, Sequence[Any], Sequence[str]]] = {
        "extra": (scale.samples, extra(depth), ()), "harsh": (scale.degraded, DEGRADED, KINDS),
    }  # fmt: skip
    for name, (limit, plans, conditions) in wanted.items():
        if name in needs:
            more = Grid(
                model, processor, task(limit), name="testbed", methods=(), keeps=(), plans=plans, conditions=conditions,
                once=False, batch=batch,
            )  # fmt: skip
            with Ledger(ledgers(name), more.setting()) as ledger:
                more.measure(ledger, lambda piece: tick(str(piece.entry.label)))
                tables[name] = Outcomes.of(more.result(ledger, name))
    if needs & {"ranked", "time", *LOOKING}:
        some = task(scale.samples)
        setting = Grid(model, processor, some, name="testbed", methods=(), keeps=(), once=False, batch=batch).setting()
        with Ledger(
            ledgers("probes"), setting | {"looks": scale.looks, "rounds": scale.rounds, "probes": _probes()}
        ) as ledger:
            looking = Probes(
                model, processor, some, ledger, samples=scale.looks, batch=batch, rounds=scale.rounds, tick=tick
            )
            found = {name: getattr(looking, name)() for name in LOOKING if name in needs}
            if "ranked" in needs:
                tables["ranked"] = Outcomes(**looking.ranked())
            if "time" in needs and (rows := timed(tables.get("grid"))):
                costs = looking.costs([Plan.of(row["plan"]) for row in rows])
                rows = [row for row in rows if row["label"] in costs]
                times = given(rows) or looking.times([Plan.of(row["plan"]) for row in rows])
                found["time"] = {label: cost | times[label] for label, cost in costs.items()}
    return Evidence(tables, found, depth)


def _probes() -> str:
    """A fingerprint of what looks into models: the ledger's own leaves out the bench."""
    files = [Path(str(module.__file__)) for module in (looks, probes)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def timed(grid: Outcomes | None) -> list[Mapping[str, Any]]:
    """Rows whose time is of interest: published methods that meet a budget of visual tokens, at one of the grid's budgets."""
    try:
        return [] if grid is None else [grid.rows[grid.key(name, TIMED)] for name in grid.methods]
    except MissingError:
        return []


def given(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Times that the grid has, as :meth:`Probes.times` gives them; none unless all rows have them."""
    names = {"prefill": "prefill", "whole": "total", "choosing": "selection"}
    try:
        return {row["label"]: {name: row["time"][part]["over"] for name, part in names.items()} for row in rows}
    except KeyError:
        return {}


def judged(claims: Sequence[Claim], evidence: Evidence) -> list[dict[str, Any]]:
    """One row per claim: what it says, how it was checked, and what came out."""
    strict = replace(evidence, level=1 - (1 - LEVEL) / max(1, len(claims)))
    rows = []
    for claim in claims:
        found, sure = _judge(claim, evidence), _judge(claim, strict).verdict
        rows.append(
            {
                "id": claim.id, "claim": claim.text, "sources": list(claim.sources), "check": claim.check,
                "verdict": found.verdict, "corrected": sure if sure == found.verdict else UNDECIDED, "why": found.why,
                "reach": claim.reach, "numbers": json.loads(json.dumps(dict(found.numbers))),
            }
        )  # fmt: skip
    return rows


def _judge(claim: Claim, evidence: Evidence) -> Judgement:
    try:
        return claim.judge(evidence)
    except MissingError as error:
        return Judgement(UNDECIDED, f"Not judged: {error}.")


def result(
    model: Any, claims: Sequence[Claim], evidence: Evidence, grid: Mapping[str, Any] | None, scale: Scale, command: str
) -> dict[str, Any]:  # fmt: skip
    """Plain data: all rows, and under which circumstances they came about."""
    parameter = next(model.parameters())
    return {
        "bench": "findings", "schema": 1, "command": command, "level": LEVEL,
        "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
        "grid": None if grid is None else {name: grid[name] for name in ("command", "identity", "protocol", "environment")},
        "samples": {name: table.n for name, table in evidence.tables.items()} | {"looks": scale.looks},
        "rounds": scale.rounds,
        "rows": judged(claims, evidence),
    }  # fmt: skip


# -- the page ----------------------------------------------------------------------------------------------------------


def markdown(found: Mapping[str, Any]) -> str:
    """A table of all claims, and a section for each with its rule and its numbers."""
    rows, where = found["rows"], found["environment"]
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
    changed = [row["id"] for row in rows if row["verdict"] != row["corrected"]]
    n = ", ".join(f"{name} {count}" for name, count in found["samples"].items())
    lines = [
        f"Of {len(rows)} claims {counts['supported']} are supported here, {counts['not supported']} are not, and "
        f"{counts['undecided']} are undecided. With intervals of {100 * (1 - (1 - LEVEL) / max(1, len(rows))):.1f} %, so wide "
        f"that all verdicts together are wrong once in twenty, "
        + (f"{len(changed)} of them become undecided: {', '.join(changed)}." if changed else "all stay as they are."),
        "",
        f"Measured on the testbed (questions: {n}). {where['processor']}, {where['threads']} "
        f"thread{'s' * (where['threads'] > 1)}, torch {where['torch']}, transformers {where['transformers']}, {where['dtype']} "
        f"on {where['device']}. Made by `{found['command']}`"
        + (f" from what `{found['grid']['command']}` measured." if found["grid"] else ", without a grid."),
        "",
        "| | claim | verdict | corrected |",
        "|---|---|---|---|",
    ]
    for row in rows:
        mark = row["id"].lower()
        lines.append(f"| [{row['id']}](#{mark}) | {row['claim']} | {row['verdict']} | {row['corrected']} |")
    for row in rows:
        lines += [
            "", f"## {row['id']}", "", f"{row['claim']} ({'; '.join(row['sources'])})", "",
            f"- **Check.** {row['check']}", f"- **Found: {row['verdict']}.** {row['why']}",
        ]  # fmt: skip
        if row["reach"]:
            lines.append(f"- **Left open.** {row['reach']}")
        if table := row["numbers"].get("table"):
            lines += ["", "| " + " | ".join(table["columns"]) + " |", "|---|" + "--:|" * (len(table["columns"]) - 1)]
            lines += [
                "| " + " | ".join(c if isinstance(c, str) else f"{c:.2f}" for c in r) + " |" for r in table["rows"]
            ]
    return "\n".join(lines)
