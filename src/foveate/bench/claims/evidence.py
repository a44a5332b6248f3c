"""What claims are judged by: outcomes of single samples, resampled together so that every statistic has an interval.

All rows of a table are resampled by the same draws, slice by slice. So a difference between rows, a mean over methods or a
ratio of variances is computed on each draw as on the data itself, and its interval is that of the paired samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ... import registry
from ...errors import FoveateError
from ..grid.conditions import CLEAN
from ..grid.results import STOCK, Place, _places
from .claim import LEVEL, MissingError, Span

DRAWS = 4000
BEFORE = ("input", "encoder", "connector")  # stages before the language model
SIMPLE = ("attribute", "count", "position", "relation", "existence")  # one picture, one turn, things that are large
READING = ("reading-short", "reading-dense")
DETAIL = (*READING, "small-detail")
FIVE = (
    "The testbed's language model has five layers, of which the first were made to match words with patches before training: "
    "there it may look at pictures more, and to the point, than other models do."
)

Array = np.ndarray


class Outcomes:
    """Right and wrong answers of many rows to the same samples.

    Args:
        slices: of each sample.
        right: by key, whether each sample was answered rightly; NaN where it was not asked.
        rows: by key, what else is known of a row.
    """

    def __init__(
        self, slices: Sequence[str], right: Mapping[str, Array], rows: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.slices, self.right, self.rows = np.array(slices), dict(right), dict(rows or {})
        self._shares = lru_cache(32)(self._weigh)  # the same few choices of samples, over and over

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Outcomes:
        """Of a result of the grid."""
        n, right, rows = len(result["samples"]), {}, {}
        for row in result["rows"]:
            key = Place(row["condition"], row["selection"]).key(row["label"])
            if "error" in row:
                continue
            outcome = result["outcomes"][key]
            right[key] = np.full(n, np.nan)
            right[key][_places(outcome["at"])] = [c == "1" for c in outcome["right"]]
            rows[key] = row
        return cls([sample["slice"] for sample in result["samples"]], right, rows)

    def __contains__(self, key: str) -> bool:
        return key in self.right

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.slices)

    @cached_property
    def weights(self) -> Array:
        """(draws + 1, n) how often each sample counts; once in the first row, which is the data."""
        draw, found = np.random.default_rng(0), np.ones((DRAWS + 1, self.n), dtype=np.float32)
        for name in dict.fromkeys(self.slices.tolist()):
            here = np.flatnonzero(self.slices == name)
            found[1:, here] = draw.multinomial(len(here), [1 / len(here)] * len(here), DRAWS)
        return found

    def accuracy(
        self, keys: Sequence[str], slices: Sequence[str] | None = None, mask: Array | None = None
    ) -> Array:  # fmt: skip
        """(draws + 1, keys) share of right answers.

        Args:
            keys: rows that were asked the same samples.
            slices: that count; all when None.
            mask: (n,) samples that count, besides.

        Raises:
            MissingError: if a row or all samples are missing.
        """
        if absent := [key for key in keys if key not in self.right]:
            raise MissingError(f"{', '.join(absent[:3])}{' and others' * (len(absent) > 3)} not measured")
        right = np.stack([self.right[key] for key in keys])
        some = ~np.isnan(right).any(0)
        if slices is not None:
            some &= np.isin(self.slices, slices)
        if mask is not None:
            some &= mask
        if not some.any():
            raise MissingError("no sample was asked of all of these: " + ", ".join(keys[:3]))
        return self._shares(some.tobytes()) @ right[:, some].T.astype(np.float32)

    def _weigh(self, some: bytes) -> Array:
        """(draws + 1, samples that count) weights that add up to one."""
        weights = self.weights[:, np.frombuffer(some, dtype=bool)]
        return weights / np.maximum(weights.sum(1, keepdims=True), 1)

    def by_slice(self, keys: Sequence[str]) -> Array:
        """(draws + 1, keys, slices), slices in their order."""
        names = dict.fromkeys(self.slices.tolist())
        return np.stack([self.accuracy(keys, [name]) for name in names], -1)

    # -- rows of a grid ------------------------------------------------------------------------------------------------

    def key(self, method: str, keep: object, selection: str = "turn") -> str:
        """Key of a method's row at a budget, on clean pictures.

        Raises:
            MissingError: if there is none.
        """
        for key, row in self.rows.items():
            if (row["method"], row["keep"], row["condition"], row["selection"]) == (
                method,
                str(keep),
                CLEAN,
                selection,
            ):
                return key
        raise MissingError(f"{method} at {keep} is not in the grid")

    def keys(self, methods: Sequence[str], keep: object) -> list[str]:
        """Keys of several methods' rows at a budget."""
        return [self.key(method, keep) for method in methods]

    @cached_property
    def keeps(self) -> list[int]:
        """Budgets in tokens per image, from the most down.

        Raises:
            MissingError: if there are fewer than two.
        """
        found = {int(row["keep"]) for row in self.rows.values() if row["keep"].isdecimal()}
        if len(found) < 2:
            raise MissingError("the grid has no two budgets in tokens per image")
        return sorted(found, reverse=True)

    @cached_property
    def fair(self) -> list[str]:
        """Published methods that meet exactly the budget before the language model, measured at all budgets.

        Raises:
            MissingError: if there are fewer than four.
        """
        found = [name for name in self.methods if set(registry.get(name).card.stages) <= set(BEFORE)]
        if len(found) < 4:
            raise MissingError("the grid has fewer than four published methods before the language model")
        return found

    @cached_property
    def methods(self) -> list[str]:
        """Published methods that meet exactly a budget of visual tokens, measured at all budgets."""
        found = []
        for name in dict.fromkeys(row["method"] for row in self.rows.values()):
            try:
                card = registry.get(name).card
                self.keys([name] if card.paper and card.count == "fixed" else [""], self.keeps[0])
                for keep in self.keeps:
                    self.key(name, keep)
            except (FoveateError, MissingError):
                continue
            if card.budget == "left" and "cache" not in card.stages:
                found.append(name)
        return found

    def seeds(self, keep: object) -> Array:
        """(draws + 1,) the random baseline at a budget, mean of its seeds.

        Raises:
            MissingError: if there is none.
        """
        rows = self.rows.items()
        found = [k for k, r in rows if (r["method"], r["keep"], r["condition"]) == ("random", str(keep), CLEAN)]
        if not found:
            raise MissingError(f"random at {keep} is not in the grid")
        return self.accuracy(found).mean(1)


STOCK_KEY = Place().key(STOCK)


@dataclass
class Evidence:
    """All that was measured, and how sure a verdict must be.

    Attributes:
        tables: outcomes by name: "grid", "extra" (plans besides), "harsh" (degraded pictures), "ranked" (tokens chosen by
            given scores, and layers that skip the picture).
        probes: what was looked at inside the model, by name; plain data.
        depth: decoder layers.
        level: of the intervals.
    """

    tables: Mapping[str, Outcomes] = field(default_factory=dict)
    probes: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 0
    level: float = LEVEL

    def table(self, name: str) -> Outcomes:
        """Outcomes.

        Raises:
            MissingError: if they were not measured.
        """
        if name not in self.tables:
            raise MissingError(f"{name} was not measured")
        return self.tables[name]

    def probe(self, name: str) -> Any:
        """What a probe found.

        Raises:
            MissingError: if it was not measured.
        """
        if name not in self.probes:
            raise MissingError(f"{name} was not measured")
        return self.probes[name]

    def span(self, draws: Array) -> Span:
        """(draws + 1,) a statistic of the data, then of every draw, as a number with its interval."""
        low, high = np.nanquantile(draws[1:], [(1 - self.level) / 2, (1 + self.level) / 2])
        return Span(float(draws[0]), float(low), float(high))

    def mean(self, values: Any) -> Span:
        """The mean of independent values, with its bootstrap interval."""
        return self.over(values, lambda some: some.mean(-1))

    def over(self, values: Any, statistic: Callable[[Array], Array]) -> Span:
        """A statistic of independent values.

        Args:
            values: (n, ...) what is resampled along the first axis.
            statistic: from (draws, ..., n) to (draws,).
        """
        data = np.moveaxis(np.asarray(values, dtype=float), 0, -1)
        n = data.shape[-1]
        if not n:
            raise MissingError("there is nothing to average")
        which = np.random.default_rng(0).integers(0, n, (DRAWS + 1, n))
        which[0] = np.arange(n)
        return self.span(statistic(np.moveaxis(data[..., which], -2, 0)))
