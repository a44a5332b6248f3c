"""From single answers to a result: every number of a grid is computed here, from the outcomes of single samples.

A result keeps those outcomes, so that parts that were measured apart (``--shard``) make the same result as one run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UnsupportedError
from ..stats import accuracy, paired
from .conditions import CLEAN

STOCK = "uncompressed"
SPLITTER = "resize"  # tells simple from difficult samples, as VTC-Bench (arXiv:2510.07143) does
SCHEMA = 1
SUMS = ("images", "before", "tokens", "layers")


@dataclass(frozen=True)
class Entry:
    """One row of a result: a plan, and what to call it. ``plan`` is None for the uncompressed model.

    Attributes:
        label: the plan's text; also tells rows apart.
        plan: a :class:`foveate.Plan`.
        method, keep: what the row belongs to in tables and curves.
        stage: where its first step works.
        seed: of a baseline that draws.
    """

    label: str
    plan: Any
    method: str = ""
    keep: str = ""
    stage: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a row was measured: the condition of the pictures, and whether tokens are chosen at each "turn" or "once"."""

    condition: str = CLEAN
    selection: str = "turn"

    def key(self, label: str) -> str:
        return f"{label}|{self.condition}|{self.selection}"


@dataclass
class Cell:
    """What a plan said at a place, sample by sample.

    Attributes:
        said: answers; right: whether they are; of the samples numbered ``at``.
        images, before, tokens, layers: how many images; in sums, their tokens before anything was done, those left after the
            last step, and those averaged over the language model's layers.
        error: why there is nothing.
    """

    at: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    images: int = 0
    before: int = 0
    tokens: int = 0
    layers: float = 0
    error: str = ""

    def add(self, piece: Mapping[str, Any]) -> None:
        """Put in a batch."""
        self.error = self.error or piece.get("error", "")
        for name in ("at", "said", "right"):
            getattr(self, name).extend(piece.get(name, ()))
        for name in SUMS:
            setattr(self, name, getattr(self, name) + piece.get(name, 0))

    def sorted(self) -> Cell:
        """In the order of the samples."""
        order = sorted(range(len(self.at)), key=self.at.__getitem__)
        return replace(
            self,
            at=[self.at[i] for i in order],
            said=[self.said[i] for i in order],
            right=[self.right[i] for i in order],
        )


def build(
    head: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[Entry, Place]],
    cells: Mapping[str, Cell],
) -> dict[str, Any]:
    """The result of a grid.

    Args:
        head: what stands before the rows.
        samples: their ``id``, ``slice``, ``question`` and ``answer``, in order.
        rows: what was measured where; a place's uncompressed row comes before its others.
        cells: by :meth:`Place.key`; in each, all samples that the place asks.
    """
    slices = [sample["slice"] for sample in samples]
    sorted_cells = {key: cell.sorted() for key, cell in cells.items()}
    made: list[dict[str, Any]] = []
    for entry, place in rows:
        row: dict[str, Any] = {
            "label": entry.label, "plan": None if entry.plan is None else entry.plan.to_dict(), "method": entry.method,
            "keep": entry.keep, "stage": entry.stage, "seed": entry.seed, "condition": place.condition,
            "selection": place.selection,
        }  # fmt: skip
        made.append(row)
        cell, stock = (sorted_cells[place.key(label)] for label in (entry.label, STOCK))
        if cell.error:
            row["error"] = cell.error
            continue
        splitter = sorted_cells.get(place.key(_split_label(rows, entry, place)))
        row |= _numbers(entry, cell, stock, splitter, [slices[i] for i in cell.at])
        if entry.plan is None:
            counted = [sorted_cells[p.key(e.label)] for e, p in rows if p == place]
            full = next((c.before / c.images for c in counted if c.images), 0.0)
            row |= {"tokens_per_image": full, "tokens_over_layers": full}
        elif place.selection == "once" and (turn := sorted_cells.get(Place(place.condition).key(entry.label))):
            right = dict(zip(turn.at, turn.right, strict=True))
            row["against_turn"] = paired(cell.right, [right[i] for i in cell.at])
    result = dict(head) | {"slices": list(dict.fromkeys(slices)), "samples": list(samples), "rows": made}
    result["curves"] = curves(made)
    result["answers"] = {key: cell.said for key, cell in sorted_cells.items() if not cell.error}
    result["outcomes"] = {
        key: {"at": _runs(cell.at), "right": "".join("01"[r] for r in cell.right)}
        | {name: getattr(cell, name) for name in SUMS}
        for key, cell in sorted_cells.items()
        if not cell.error
    }
    return result


def _numbers(entry: Entry, cell: Cell, stock: Cell, splitter: Cell | None, slices: list[str]) -> dict[str, Any]:
    if cell.at != stock.at:
        raise UnsupportedError(f"{entry.label} answered other samples than the uncompressed model", where="results")
    images = max(1, cell.images)
    row = accuracy(cell.right) | {
        "tokens_per_image": cell.tokens / images,
        "tokens_over_layers": cell.layers / images,
        "slices": {},
    }
    for name in dict.fromkeys(slices):
        here = [i for i, s in enumerate(slices) if s == name]
        row["slices"][name] = accuracy([cell.right[i] for i in here])
        if entry.plan is not None:
            change = paired([cell.right[i] for i in here], [stock.right[i] for i in here])
            row["slices"][name]["against_uncompressed"] = change
    if entry.plan is None:
        return row
    row["against_uncompressed"] = paired(cell.right, stock.right)
    row["agreement"] = accuracy([a == b for a, b in zip(cell.said, stock.said, strict=True)])
    if changes := {
        name: part["against_uncompressed"] for name, part in row["slices"].items()
    }:  # a part may ask nothing
        worst = min(changes, key=lambda name: changes[name]["difference"])
        row["worst"] = {"slice": worst} | {name: changes[worst][name] for name in ("difference", "low", "high")}
    if splitter is not None and not splitter.error:
        for name, want in (("simple", True), ("difficult", False)):
            both = zip(cell.right, stock.right, splitter.right, strict=True)
            row[name] = accuracy([r for r, known, easy in both if known and easy is want])
    return row


def _split_label(rows: Sequence[tuple[Entry, Place]], entry: Entry, place: Place) -> str:
    """The smaller picture's row at the same budget."""
    same = (e.label for e, p in rows if p == place and e.method == SPLITTER and e.keep == entry.keep)
    return next(same, "") if entry.keep else ""


def curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy against tokens of every method with two budgets or more; of one that draws, the mean of its seeds.

    ``area`` is the accuracy averaged over the logarithm of the tokens kept, by trapezoids between the budgets measured: 1 is
    never wrong at any of them. It compares methods at the same budgets only.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row["keep"] and "error" not in row:
            group = groups.setdefault((row["method"], row["condition"], row["selection"]), {})
            group.setdefault(row["keep"], []).append(row)
    found = []
    for (method, condition, selection), budgets in groups.items():
        points = sorted(
            (sum(r["tokens_per_image"] for r in same) / len(same), sum(r["accuracy"] for r in same) / len(same))
            for same in budgets.values()
        )
        if len(points) < 2:
            continue
        # By what was asked for, not by what was kept: methods between the layers keep all tokens that enter.
        asked = sorted((float(keep), same) for keep, same in budgets.items() if _number(keep))
        area = None
        if len(asked) == len(budgets):
            marks = [(math.log2(keep), sum(r["accuracy"] for r in same) / len(same)) for keep, same in asked]
            steps = list(itertools.pairwise(marks))
            width = marks[-1][0] - marks[0][0]
            area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in steps) / width
        found.append(
            {
                "method": method, "condition": condition, "selection": selection,
                "tokens": [t for t, _ in points], "accuracy": [a for _, a in points], "area": area,
            }
        )  # fmt: skip
    return found


def _number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False


# -- parts of a run ----------------------------------------------------------------------------------------------------


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of parts of the same grid, in any order, as one result.

    Raises:
        UnsupportedError: if a part is missing or doubled, or belongs to another grid.
    """
    first = parts[0]
    shards = sorted(tuple(part["protocol"]["shard"]) for part in parts)
    if shards != [(i + 1, shards[0][1]) for i in range(shards[0][1])]:
        have = ", ".join(f"{i}/{n}" for i, n in shards)
        raise UnsupportedError(
            f"these parts do not make a whole: {have}", hint=f"1/{shards[0][1]} and so on, once each"
        )
    alike = [_protocol(part) for part in parts]
    if any(one != alike[0] or part["identity"] != first["identity"] for one, part in zip(alike, parts, strict=True)):
        raise UnsupportedError(
            "these parts belong to different grids", hint="same flags, same versions, another --shard"
        )
    if len(parts) == 1:
        return dict(first)
    samples: dict[int, Any] = {sample["place"]: sample for part in parts for sample in part["samples"]}
    order = sorted(samples)
    back = {place: i for i, place in enumerate(order)}
    cells: dict[str, Cell] = {}
    for part in parts:
        where = [back[sample["place"]] for sample in part["samples"]]
        for row in part["rows"]:
            key = Place(row["condition"], row["selection"]).key(row["label"])
            cells.setdefault(key, Cell()).add(_piece(part, row, key, where))
    rows = [_entry(row) for row in first["rows"]]
    kept = ("slices", "samples", "rows", "curves", "answers", "outcomes")
    head = {name: value for name, value in first.items() if name not in kept}
    head["protocol"] = alike[0] | {"shard": [1, 1]}
    whole = build(head, [samples[place] for place in order], rows, cells)
    for i, row in enumerate(whole["rows"]):
        row |= next(({"time": part["rows"][i]["time"]} for part in parts if "time" in part["rows"][i]), {})
    return whole


def _protocol(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part["protocol"].items() if name != "shard"}


def _piece(part: Mapping[str, Any], row: Mapping[str, Any], key: str, where: list[int]) -> dict[str, Any]:
    if "error" in row:
        return {"error": row["error"]}
    outcome = part["outcomes"][key]
    at, right = [where[i] for i in _places(outcome["at"])], [c == "1" for c in outcome["right"]]
    return dict(outcome) | {"at": at, "right": right, "said": part["answers"][key]}


def _entry(row: Mapping[str, Any]) -> tuple[Entry, Place]:
    from ...plan import Plan

    plan = None if row["plan"] is None else Plan.of(row["plan"])
    entry = Entry(row["label"], plan, row["method"], row["keep"], row["stage"], row["seed"])
    return entry, Place(row["condition"], row["selection"])


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each stretch without gaps."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _places(runs: Sequence[Sequence[int]]) -> list[int]:
    return [number for first, last in runs for number in range(first, last + 1)]
