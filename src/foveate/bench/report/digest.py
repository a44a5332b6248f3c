"""What a report shows of an accuracy grid: which rows, in which order, under which names, and the charts they make."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from .figures import Chart, Level, Point, Series

STOCK = "uncompressed"
BASELINES = ("random", "stride", "pool", "resize")
BEST = 5  # methods that are shown at first, in a chart and above a folded table
PLACES = {  # where a plan works, and what its budget counts
    "before": "before the language model",
    "layers": "between the language model's layers",
    "cache": "in the cache",
}
Row = Mapping[str, Any]


def percent(share: float, digits: int = 1) -> str:
    """A share as a number of percent, with a true minus sign."""
    return signed(100 * share, digits).removeprefix("+")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a true minus; zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, digits: int = 1) -> str:
    """A 95 % interval of shares, in percent."""
    return f"{percent(low, digits)} to {percent(high, digits)}"


def change(paired: Row) -> str:
    """A paired difference in points with its interval."""
    low, high = (signed(100 * paired[name]) for name in ("low", "high"))
    return f"{signed(100 * paired['difference'])} points ({low} to {high})"


def beyond(paired: Row) -> int:
    """-1 if the interval of a difference lies below zero, 1 if above, 0 if it holds zero."""
    return -1 if paired["high"] < 0 else int(paired["low"] > 0)


def budget(keep: str) -> str:
    """A budget in words."""
    if not keep:
        return "no budget to choose"
    try:
        value = float(keep)
    except ValueError:
        return f"keep={keep}"
    return f"{keep} tokens per image" if value > 1 else f"{percent(value, 0)} % of the tokens"


def place(row: Row) -> str:
    """One of :data:`PLACES`."""
    return row["stage"] if row["stage"] in ("layers", "cache") else "before"


class Digest:
    """An accuracy grid as a page shows it.

    Args:
        result: what the grid's file holds, checked.
        keep: budget that is shown first; the middle one if empty or unknown.
    """

    def __init__(self, result: dict[str, Any], keep: str = "") -> None:
        self.result = result
        self.rows: list[dict[str, Any]] = [row for row in result["rows"] if "error" not in row]
        self.refused: list[dict[str, Any]] = [row for row in result["rows"] if "error" in row]
        self.stock = next(row for row in self.rows if row["method"] == STOCK)
        here = self.stock["condition"], self.stock["selection"]
        #: Compressed rows under the conditions of the first uncompressed one.
        self.plain = [r for r in self.rows if (r["condition"], r["selection"]) == here and r["method"] != STOCK]
        self.budgets = self._budgets()
        self.keep = keep if keep in self.budgets else self.budgets[len(self.budgets) // 2] if self.budgets else ""

    def _budgets(self) -> list[str]:
        """What rows were asked to keep, most first."""
        size: dict[str, list[float]] = {}
        for row in self.plain:
            if row["keep"]:
                size.setdefault(row["keep"], []).append(row["tokens_over_layers"])
        return sorted(size, key=lambda keep: (-statistics.median(size[keep]), keep))

    def name(self, row: Row) -> str:
        """The method, and what else is needed to tell a row from others at the same budget."""
        same = (row["method"], row["keep"], row["condition"], row["selection"])
        if self._count[same] == 1 or row["method"] == STOCK:
            return row["method"]
        seeded = (*same, row["seed"])
        if row["seed"] is not None and self._count[seeded] == 1:
            return f"{row['method']}, seed {row['seed']}"
        return row["label"]

    @cached_property
    def _count(self) -> Counter[Any]:
        keys = [(r["method"], r["keep"], r["condition"], r["selection"]) for r in self.rows]
        return Counter(keys) + Counter((*key, r["seed"]) for key, r in zip(keys, self.rows, strict=True))

    def at(self, keep: str, where: str | None = None) -> list[dict[str, Any]]:
        """Rows of a budget, of a place or of all, most accurate first."""
        found = [row for row in self.plain if row["keep"] == keep and where in (None, place(row))]
        return sorted(found, key=lambda row: (-row["accuracy"], row["label"]))

    def order(self, keep: str) -> tuple[int, str]:
        """Sorts budgets: most first, unknown ones and none at the end."""
        return (self.budgets.index(keep) if keep in self.budgets else len(self.budgets)), keep

    def reference(self, row: Row) -> dict[str, Any]:
        """The uncompressed row under the same conditions."""
        same = (r for r in self.rows if r["method"] == STOCK and r["condition"] == row["condition"])
        return next(r for r in same if r["selection"] == row["selection"])

    def at_each_turn(self, row: Row) -> dict[str, Any] | None:
        """Accuracy of a plan that chooses at each turn, on the samples of its row that chooses once; None if unknown."""
        from ..stats import accuracy

        if "against_turn" not in row:
            return None
        right = row["right"] - row["against_turn"]["gained"] + row["against_turn"]["lost"]
        return accuracy([i < right for i in range(row["n"])])

    @cached_property
    def area(self) -> dict[str, float]:
        """Rate-accuracy area by method, under the first conditions."""
        here = self.stock["condition"], self.stock["selection"]
        fit = (c for c in self.result.get("curves", ()) if (c["condition"], c["selection"]) == here)
        return {curve["method"]: curve["area"] for curve in fit if curve["area"] is not None}

    @cached_property
    def ranked(self) -> list[str]:
        """Methods, the best first: by area, those without one by their mean accuracy."""
        mean: dict[str, list[float]] = {}
        for row in self.plain:
            mean.setdefault(row["method"], []).append(row["accuracy"])
        return sorted(mean, key=lambda name: (-self.area.get(name, statistics.mean(mean[name])), name))

    def best(self, where: str | None = None, count: int = BEST) -> list[str]:
        """The best methods that are no baselines, at a place or at any."""
        fit = {row["method"] for row in self.plain if where in (None, place(row))}
        return [name for name in self.ranked if name in fit and name not in BASELINES][:count]

    def first(self, rows: Sequence[dict[str, Any]], count: int = 12) -> list[dict[str, Any]]:
        """Of rows, the best and all baselines, in their order; all, if that leaves out a few only."""
        if len(rows) <= count + 6:
            return list(rows)
        best = [row for row in rows if row["method"] not in BASELINES][:count]
        return [row for row in rows if row in best or row["method"] in BASELINES]

    # -- charts

    def level(self) -> Level:
        """The uncompressed model, as a line."""
        row = self.stock
        return Level(row["accuracy"], f"uncompressed {percent(row['accuracy'])} %", row["low"], row["high"])

    def tokens(self, where: str) -> tuple[Chart, list[Series]] | None:
        """Accuracy against tokens of the methods of a place.

        Returns:
            The chart with the best methods and the baselines, and a series for every method of the place; None if no row
            can be drawn.
        """
        rows = [row for row in self.plain if place(row) == where and self._x(row) is not None]
        if not rows:
            return None
        names = [name for name in self.ranked if any(row["method"] == name for row in rows)]
        basic = [
            row for row in self.plain if row["method"] in BASELINES and where != "cache" and place(row) == "before"
        ]
        every = [self._series(name, rows) for name in names]
        best = [replace(self._series(name, rows), style=i) for i, name in enumerate(self.best(where)) if name in names]
        lines = [
            replace(self._series(name, basic), style=i, baseline=True)
            for i, name in enumerate(BASELINES)
            if any(row["method"] == name for row in basic)
        ]
        shown = [*lines, *reversed(best)]
        if not best and not lines:
            shown = [replace(series, style=i) for i, series in enumerate(every[:BEST])]
        if where == "cache":
            x = "cache entries kept per head and layer, text included"
        elif all(abs(r["tokens_per_image"] - r["tokens_over_layers"]) < 0.5 for r in rows):
            x = "visual tokens per image (log scale)"
        else:
            x = "visual tokens per image, mean over the layers (log scale)"
        marks = {float(keep) for keep in self.budgets if _count(keep)}
        marks |= {round(point.x) for series in shown for point in series.points} if not marks else set()
        full, n = self.stock["tokens_over_layers"], self.stock["n"]
        if where == "layers" and marks and max(p.x for series in shown for p in series.points) > 1.25 * max(marks):
            marks.add(full)  # tokens that leave late run in more layers than their budget says
        chart = Chart(
            f"tokens-{where}",
            f"Methods {PLACES[where]}",
            f"Accuracy against tokens, {len(every)} methods {PLACES[where]}, n = {n}: "
            + "; ".join(_words(series) for series in shown[::-1]),
            x,
            "accuracy, %",
            shown,
            self.level(),
            marks=tuple(sorted(marks)),
        )
        return chart, every

    def _x(self, row: Row) -> float | None:
        """Where it stands on the axis; None if it has no place there, such as no tokens on a logarithmic one."""
        if place(row) != "cache":
            return row["tokens_over_layers"] or None
        return float(row["keep"]) if _count(row["keep"]) else None

    def _series(self, name: str, rows: Sequence[dict[str, Any]]) -> Series:
        mine = [row for row in rows if row["method"] == name]
        points, joined = [], []
        for keep in dict.fromkeys(row["keep"] for row in mine):
            same = [row for row in mine if row["keep"] == keep]
            for row in same:
                note = f"{self.name(row)}, {budget(keep)}: {percent(row['accuracy'])} % ({interval(row['low'], row['high'])})"
                points.append(Point(self._x(row) or 0.0, row["accuracy"], row["low"], row["high"], note=note))
            mean = [
                statistics.mean(one) for one in ([p.x for p in points[-len(same) :]], [r["accuracy"] for r in same])
            ]
            joined.append((mean[0], mean[1]))
        area = self.area.get(name)
        note = f"area {percent(area)} %" if area is not None else ""
        return Series(name, points, tuple(sorted(joined)), note=note)

    def times(self, where: str) -> Chart | None:
        """Accuracy against the measured time to the first token at a place, or None without times.

        Methods look as in :meth:`tokens`; what is not drawn as a line there is a small dot here.
        """
        rows = [row for row in self.timed if place(row) == where]
        if not rows:
            return None
        best = self.best(where)
        basic = [row for row in self.timed if row["method"] in BASELINES and place(row) == "before"]
        others = [row for row in rows if row["method"] not in {*best, *BASELINES}]
        series = (
            [Series(f"{len(others)} other plans", [self._timed(row) for row in others], style=-1)] if others else []
        )
        for names, fit in ((BASELINES, basic), (best[::-1], rows)):
            for name in names:
                mine = sorted((r for r in fit if r["method"] == name), key=lambda row: row["tokens_over_layers"])
                points = [self._timed(row) for row in mine]
                style = names.index(name) if names is BASELINES else best.index(name)
                line = tuple((p.x, p.y) for p in points)
                series += [Series(name, points, line, style, names is BASELINES)] if points else []
        return Chart(
            f"time-{where}",
            f"Methods {PLACES[where]}",
            f"Accuracy against measured time to the first token of {len(rows)} plans {PLACES[where]}, over that of the "
            f"uncompressed model, n = {self.stock['n']}: " + "; ".join(_words(s) for s in series[::-1] if s.style >= 0),
            "time to the first token, over uncompressed",
            "accuracy, %",
            series,
            self.level(),
            log=False,
            upright=1.0,
        )

    @cached_property
    def timed(self) -> list[dict[str, Any]]:
        """Rows with a measured time to the first token."""
        return [row for row in self.plain if "over" in row.get("time", {}).get("first_token", {})]

    def _timed(self, row: Row) -> Point:
        time = row["time"]["first_token"]
        left, right = time.get("quartiles", (None, None))
        note = f"{self.name(row)}, {budget(row['keep'])}: {time['over']:.3f} of the time, {percent(row['accuracy'])} %"
        return Point(time["over"], row["accuracy"], row["low"], row["high"], left, right, note)

    @cached_property
    def front(self) -> list[dict[str, Any]]:
        """Timed rows that no other beats in both accuracy and time to the first token, fastest first."""
        rows = list(self.timed)
        rows.sort(key=lambda row: (row["time"]["first_token"]["over"], -row["accuracy"]))
        found: list[dict[str, Any]] = []
        for row in rows:
            if not found or row["accuracy"] > found[-1]["accuracy"]:
                found.append(row)
        return found


def _words(series: Series) -> str:
    points = series.line or [(p.x, p.y) for p in series.points]
    return f"{series.name} " + ", ".join(f"{100 * y:.1f} % at {x:.3g}" for x, y in points)


def _count(keep: str) -> bool:
    try:
        return math.isfinite(float(keep)) and float(keep) > 1
    except ValueError:
        return False
