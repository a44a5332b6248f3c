"""The key/value cache, thinned out once a prompt is in it.

While a prompt runs, each layer's method is shown the rows of attention it asks for, and scores. When the call is over, the
layers' keys and values are gathered, head by head, and what goes is freed. Where different heads hold different entries
nothing is in the way of stock decoding: keys are rotated already, and a step sees all that is stored. Layers report their
logical length, as those of shortened prompts do.

A layer with a sliding window stays as it is: it holds no more than its window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..entries import Entries, Eviction, Thinned
from ..errors import MethodError, UnsupportedError
from ..families import Family
from ..method import CacheMethod
from ..plan import Plan, Step
from ..tokens import Extra, Kind
from . import cache as caches
from . import tap
from .seen import Seen

if TYPE_CHECKING:
    from .prefill import Prefill

ROWS = ("window_rows", "text_rows", "received")
CHUNK = 256  # queries whose attention is added up at a time


def steps_of(plan: Plan) -> list[Step]:
    """A plan's steps on the cache that may change something."""
    return [s for s in plan.steps if s.stage == "cache" and (s.keep is None or not s.keep.is_all)]


def check(family: Family, steps: Sequence[Step]) -> None:
    """Raise UnsupportedError unless the steps can run on this model's cache."""
    for step in steps:
        where, method, fault = f"method {step.method.name}, stage cache, family {family.name}", step.method, ""
        if not isinstance(method, CacheMethod):
            fault, hint = "it is no CacheMethod, and does not say which entries stay", "at=connector"
        elif set(method.card.needs) - set(ROWS):
            fault, hint = f"it needs {', '.join(method.card.needs)} of the cache", ", ".join(ROWS)
        elif step is not steps[0]:
            fault, hint = f"{steps[0].method.name} thins out the same cache", "one of the two"
        elif step.keep is not None and step.keep.unit == "frame":
            fault, hint = (
                f"keep={step.keep}: entries of the cache are a prompt's, not a frame's",
                "a share, or a number",
            )
        elif not any(thinned(family, i) for i in range(len(family.layers()))):
            fault, hint = "every layer has a sliding window, which holds no more than that", "a method before the cache"
        if fault:
            raise UnsupportedError(fault, where=where, hint=hint)


def thinned(family: Family, layer: int) -> bool:
    """Whether the entries of a decoder layer may go."""
    return family.layer_kind(layer) == "full_attention"


class Evictor:
    """Thins out the cache of one call. step: of the plan; call: its prefill, whose columns are counted from 0."""

    def __init__(self, family: Family, step: Step, call: Prefill, ends: list[int]) -> None:
        """ends: of each row, the column after the last of its prompt; what comes after, a draft, is no part of it."""
        self.family, self.step, self.call = family, step, call
        assert isinstance(step.method, CacheMethod)
        self.method: CacheMethod = step.method
        self.ends = ends
        self.scores: dict[tuple[int, int], tuple[Tensor | None, float]] = {}
        self.thinned: list[Thinned] = []
        self.before = self.after = 0  # bytes

    def look(self, seen: Seen) -> None:
        """Let the method score the entries of a layer whose queries and keys are at hand."""
        if not thinned(self.family, seen.layer):
            return
        for row in range(len(seen.query)):
            slots, number = self._columns(row, seen.layer)
            key = seen.key[row, :, seen.first :][:, slots]
            value = seen.value[row, :, seen.first :][:, slots]
            extras = {name: self._rows(name, seen, row, slots, number) for name in self.method.card.needs}
            entries = self._entries(row, seen.layer, key, value, number, len(number), extras)
            with torch.no_grad():
                self.scores[row, seen.layer] = self.method.score(entries), self.method.measure(entries)

    def _columns(self, row: int, layer: int) -> tuple[Tensor, Tensor]:
        """(n,) slots of a prompt's entries among those that a call added to a layer, and which columns they are."""
        number, alive = self._added(row, layer)
        slots = (alive & (number < self.ends[row])).nonzero()[:, 0]
        return slots, number[slots]

    def _added(self, row: int, layer: int) -> tuple[Tensor, Tensor]:
        """(m,) columns of the slots that a call added to a layer, and which are alive."""
        cut = self.call.cuts.get(layer)
        if cut is not None:
            return cut.index[row], cut.alive[row]
        return torch.arange(self.call.fresh, device=self.call.valid.device), self.call.valid[row]

    def _rows(self, name: str, seen: Seen, row: int, slots: Tensor, number: Tensor) -> Extra:
        """Attention over the entries, (h, g, ...)."""
        heads = seen.key.shape[1]
        if name == "received":
            total: Tensor | float = 0.0
            for part in slots.split(CHUNK):
                total = total + seen.rows(row, part, slots).sum(1)
            assert isinstance(total, Tensor)
            return Extra(total.unflatten(0, (heads, -1)), seen.layer, "added up over all queries")
        asks = slots[-self.method.window :]
        if name == "text_rows":
            pictures = [strip.every for strip in self.call.strips if strip.row == row]
            after = number > torch.cat(pictures).max() if pictures else torch.ones_like(number, dtype=torch.bool)
            asks = slots[after & self.call.text[row][number]]
            asks = asks if len(asks) else slots[-1:]
        weights = seen.rows(row, asks, slots)  # (heads of queries, q, n)
        return Extra(weights.unflatten(0, (heads, -1)), seen.layer, "over the prompt")

    def _entries(
        self, row: int, layer: int, key: Tensor, value: Tensor, number: Tensor, k: int, extras: dict[str, Extra]
    ) -> Entries:
        kind = torch.full_like(number, int(Kind.TEXT))
        left = torch.ones_like(number, dtype=torch.bool)
        for strip in self.call.strips:
            if strip.row == row:
                # What was merged stands where it stands: a column is of the picture it was of at first.
                kinds = strip.picture.layout.kind.to(number.device)
                every = strip.every.to(number.device)
                full = kind.new_full((self.call.fresh,), -1).index_copy(0, every, kinds.to(kind.dtype))
                kind = torch.where(full[number] >= 0, full[number], kind)
                gone = torch.zeros(self.call.fresh, dtype=torch.bool, device=number.device).index_fill(0, every, True)
                gone[strip.runs.to(number.device)] = False
                left = left & ~gone[number]
        depth = len(self.family.layers())
        return Entries(key.detach(), value.detach(), kind, number, left, k, layer, depth, extras)

    def finish(self, cache: Any) -> None:
        """Thin out a cache, which has a memory, once the call is over."""
        layers = [i for i in range(len(cache.layers)) if i < self.call.depth and thinned(self.family, i)]
        memory = caches.memory_of(cache)
        assert memory is not None
        self.before = bytes_of(cache)
        budgets = [self._budgets(row, layers) for row in range(len(self.call.valid))]
        for i, layer_budgets in zip(layers, zip(*budgets, strict=True), strict=True):
            memory.needs_run |= self._thin(i, cache.layers[i], layer_budgets)
        self.after = bytes_of(cache)

    def _budgets(self, row: int, layers: list[int]) -> list[tuple[int, int]]:
        """(entries to keep now, entries that it may hold while decoding) of a prompt in each layer."""
        counts = [len(self._columns(row, i)[0]) for i in layers]
        n, keep = max(counts), self.step.keep
        k = n if keep is None else keep.counts([n])[0]
        most = k if keep is None or keep.unit == "share" else int(keep.amount)  # of a prompt shorter than that
        shares = self.method.allot(k, n, [self.scores.get((row, i), (None, 0.0))[1] for i in layers])
        now = [max(1, min(count, share)) for count, share in zip(counts, shares, strict=True)]
        return [(each, max(each, most) if most > n else each) for each in now]

    def _thin(self, i: int, layer: Any, budgets: Sequence[tuple[int, int]]) -> bool:
        """Thin out one layer; whether later calls need a run, because some rows have empty slots or masks are always made."""
        call, rows = self.call, len(self.call.valid)
        first = caches.held_by(layer) - (call.cuts[i].index.shape[1] if i in call.cuts else call.fresh)
        keys, values, numbers = list[Tensor](), list[Tensor](), list[Tensor]()
        for row in range(rows):
            slots, number = self._columns(row, i)
            key, value = layer.keys[row, :, first:], layer.values[row, :, first:]
            answer = self._ask(row, i, key[:, slots], value[:, slots], number, budgets[row][0])
            every, alive = self._added(row, i)
            rest = (alive & (every >= self.ends[row])).nonzero()[:, 0]  # a draft's, which stay
            keys.append(torch.cat([answer.apply(key[:, slots]), key[:, rest]], 1))
            values.append(torch.cat([answer.apply(value[:, slots]), value[:, rest]], 1))
            numbers.append(torch.cat([number[answer.kept[0]], every[rest]]) + call.base)
        if not self.method.evicts and all(one.eviction.whole for one in self.thinned[-rows:]):
            return False
        wide = max(map(len, numbers))
        pads = [wide - len(one) for one in numbers]
        index = torch.stack([_pad(x, p, -1) for x, p in zip(numbers, pads, strict=True)])
        alive = torch.arange(wide, device=index.device) >= torch.tensor(pads, device=index.device)[:, None]
        past, lives = self._earlier(layer, first, rows, index)
        index, alive = torch.cat([past, index], 1), torch.cat([lives, alive], 1)
        for name, new in (("keys", keys), ("values", values)):
            padded = torch.stack([_pad(x, p, -2) for x, p in zip(new, pads, strict=True)])
            setattr(layer, name, torch.cat([getattr(layer, name)[:, :, :first], padded], 2))
        layer.columns = caches.Columns(index, alive, call.base + call.fresh)
        if self.method.evicts:
            holds = alive.sum(1).tolist()
            may = [n + most - now for n, (now, most) in zip(holds, budgets, strict=True)]
            layer.ledger = Ledger(self.method, self._scores(i, layer, first, pads), may, holds)
        return any(pads) or call.kernel == "eager" or not bool(lives.all())

    def _scores(self, i: int, layer: Any, first: int, pads: list[int]) -> Tensor | None:
        """(b, h, slots) what the method said of the entries that stayed; 0 for what was there before, and for drafts."""
        mine = {one.sample: one for one in self.thinned if one.layer == i}
        rows = []
        for row, pad in enumerate(pads):
            score, kept = self.scores.get((row, i), (None, 0.0))[0], mine[row].eviction.kept
            if score is None:
                return None
            told = score.gather(1, kept)
            rest = layer.keys.shape[2] - first - pad - kept.shape[1]
            rows.append(nn.functional.pad(told, (first + pad, rest)))
        return torch.stack(rows)

    def _earlier(self, layer: Any, first: int, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(b, first) base columns of what a layer held before the call, and which are alive."""
        if layer.columns is not None:
            return layer.columns.index[:, :first], layer.columns.alive[:, :first]
        index = torch.arange(first, device=like.device).expand(rows, -1)
        alive = self.call.alive[:, :first] if first else torch.ones_like(index, dtype=torch.bool)
        return index, alive.to(like.device)

    def _ask(self, row: int, layer: int, key: Tensor, value: Tensor, number: Tensor, k: int) -> Eviction:
        method, n = self.method, len(number)
        where = f"method {method}, stage cache, layer {layer}, family {self.family.name}, {n} entries to {k}"
        entries = self._entries(row, layer, key, value, number, k, {})
        try:
            with torch.no_grad():
                answer = method(entries, self.scores.get((row, layer), (None, 0.0))[0])
            if not isinstance(answer, Eviction) or answer.n != n:
                raise MethodError(f"it answered {answer!r}, not an eviction from these entries")
            answer.check()
            if method.card.count == "fixed" and answer.m != k:
                raise MethodError(f"it kept {answer.m} entries; its card says 'fixed'")
        except MethodError as error:
            hint = error.hint or "see the docstring of foveate.method.CacheMethod"
            raise MethodError(error.what, where=error.where or where, hint=hint) from error
        self.thinned.append(Thinned(row, layer, number, answer))
        return answer


class Ledger:
    """What a cache layer remembers of a method that evicts while decoding.

    Attributes:
        method: which one.
        score: (b, h, s), or None.
        budget, count: (b,) entries that each row may hold, and holds, on the CPU. They are the last of its slots.
    """

    def __init__(self, method: CacheMethod, score: Tensor | None, budget: list[int], count: list[int]) -> None:
        self.method, self.score = method, score
        self.budget, self.count = torch.tensor(budget), torch.tensor(count)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let the rows follow the cache. change: from (b, ...) to (b', ...)."""
        self.score = None if self.score is None else change(self.score)
        self.budget, self.count = change(self.budget), change(self.count)

    def look(self, query: Tensor, key: Tensor, scale: float, mask: Tensor | None) -> None:
        """Add the attention of new tokens. query: (b, heads, q, c); key: (b, h, s, c)."""
        if self.score is None:
            return
        q, s = query.shape[2], key.shape[2]
        seen = torch.arange(s, device=key.device) <= s - q + torch.arange(q, device=key.device)[:, None]
        if mask is None or mask.ndim == 2:
            mask = seen[None, None] if mask is None else seen & mask[:, None, None, -s:].bool()
        got = tap.rows(query, key, scale, mask).sum(2).unflatten(1, (key.shape[1], -1)).sum(2)  # (b, h, s)
        known = self.score[..., :s]
        self.score = got + nn.functional.pad(known, (0, s - known.shape[2]))

    def step(self, layer: Any, base: int) -> None:
        """Let an entry of each head go in rows that hold more than they may. base: columns counted, the new one included."""
        held = caches.held_by(layer)
        index, alive = layer.columns.now(held, base)
        count = self.count + 1
        over = count > self.budget
        self.count = count - over.long()
        wide = int(self.count.max())
        if not bool(over.any()) and wide == held:
            return
        device, heads = index.device, layer.keys.shape[1]
        place = (
            torch.arange(wide) - (wide - self.count)[:, None]
        )  # (b, w) among a row's entries; below 0: an empty slot
        source = (place + (held - count)[:, None]).to(device)[:, None].expand(-1, heads, -1)
        goes = self.method.oldest(self.score, alive)[..., None]  # (b, h or 1, 1)
        source = (source + (over.to(device)[:, None, None] & (source >= goes)).long()).clamp(min=0)
        layer.keys, layer.values = (
            x.gather(2, source[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (layer.keys, layer.values)
        )
        if self.score is not None:
            self.score = self.score.gather(2, source)
        layer.columns = caches.Columns(index.gather(1, source[:, 0]), (place >= 0).to(device), base)


def bytes_of(cache: Any) -> int:
    """Bytes that a cache's keys and values take up, measured on the tensors."""
    held = [x for layer in cache.layers for x in (layer.keys, layer.values) if isinstance(x, Tensor)]
    return sum(x.untyped_storage().nbytes() for x in {id(x): x for x in held}.values())


def _pad(x: Tensor, count: int, axis: int) -> Tensor:
    """Zeros before the first of an axis."""
    if not count:
        return x
    shape = list(x.shape)
    shape[axis] = count
    return torch.cat([x.new_zeros(shape), x], axis)
