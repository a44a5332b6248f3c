"""The way of one batch of pictures through the vision tower, stop by stop; see ``tower.py``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import share_out
from ..errors import MethodError, UnsupportedError
from ..families import Family
from ..method import TowerMethod
from ..plan import Step
from ..tokens import Extra, Kind, Reduction, View
from .alive import Alive, joined
from .reading import SUMMED, read, without

MASKED = ("sdpa", "eager")  # kernels that take a mask with a value per token
BORDERS = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = ("max_seqlen", "max_length_q", "max_length_k")  # upper bounds, which stay true


@dataclass(frozen=True)
class Done:
    """What one step did in the tower.

    Attributes:
        sizes, asked: content tokens of each unit before the step, and asked of it.
        reductions: over the content tokens of each unit; None where all stay.
        stops: for each unit (block, content tokens that entered it) at every stop, counted before the step.
    """

    sizes: list[int]
    asked: list[int]
    reductions: list[Reduction | None]
    stops: list[list[tuple[int, Tensor]]]


@dataclass
class Part:
    """The tokens of one picture, or of one of its tiles, on their way through the tower.

    Attributes:
        unit, row: which unit, and which row of the tower's batch.
        index: (n,) its places among the unit's content tokens.
        rows: (n, s) rows of the tower, batch and sequence as one, that make up each token.
        place: tile, row, col and kind of each token.
        total: what happened to the n tokens so far.
        size: (m,) tokens in each slot.
        pixels: (n, c) or None.
        step: what happened since the present step began, and ``rank``: places of the tokens it found among the unit's.
        marks: of the present step, aligned with the slots.
        k: what the present step leaves.
    """

    unit: int
    row: int
    index: Tensor
    rows: Tensor
    place: dict[str, Tensor]
    total: Reduction
    size: Tensor
    pixels: Tensor | None = None
    step: Reduction = None  # type: ignore[assignment]
    rank: Tensor = None  # type: ignore[assignment]
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    k: int = 0

    @property
    def slots(self) -> Tensor:
        """(m, s) rows of the tower where the slots are."""
        return self.rows[self.total.anchor]


class Passage:
    """The way of one batch of pictures through the tower.

    Args:
        family: of the model.
        steps: those of the encoder stage, checked.
        arguments: of ``get_image_features``.
        clock: starts a clock on a device, which has a ``stop``.
    """

    def __init__(self, family: Family, steps: Sequence[Step], arguments: dict[str, Any], clock: Any = None) -> None:
        self.family, self.arguments, self.clock = family, arguments, clock
        self.steps = [(step, list(_tower(step).stops(family.last_block() + 1))) for step in steps]
        self.alive: Alive | None = None
        self.pixels: Tensor | None = None  # as the tower got them
        self.done: list[Done] = []
        self.seconds: list[Callable[[], float]] = []
        self._parts: list[Part] = []
        self._beside: list[
            tuple[int, Tensor]
        ] = []  # (unit, rows of the tower that feed no token of it); -1: CLS tokens
        self._units = 0
        self._seen: dict[str, list[Tensor]] = {}  # read in the block that ran last
        self._weighs = False
        self._cursor = 0  # tokens of the present block whose attention has been computed

    # -- a block ---------------------------------------------------------------------------------------------------

    def before(self, block: nn.Module, number: int, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """The arguments of a block, for the tokens that are left; None if nothing changes."""
        step = next((i for i, (_, stops) in enumerate(self.steps) if number in stops), None)
        if step is None and self.alive is None:
            return None
        bound = inspect.signature(block.forward).bind_partial(*args, **kwargs).arguments
        named = {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}
        first = next(iter(bound))
        hidden = named.pop(first)
        packed = hidden.ndim == 2
        x = hidden[None] if packed else hidden
        if step is not None:
            watch = None if self.clock is None else self.clock(x.device)
            x = self._stop(step, number, x)
            if watch is not None:
                self.seconds.append(watch.stop())
        else:
            assert self.alive is not None
            x = self.alive.take(x)
        self._seen, self._cursor = {}, 0
        x = _laid_out(x[0] if packed else x, hidden)
        rest = {name: self._follow(name, value) for name, value in named.items()}
        return ((x,), rest) if args else ((), {first: x, **rest})

    def look(self, needs: frozenset[str], query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> None:
        """Read in a block what the step that stops after it needs."""
        for name, value in read(needs, query, key, mask, kwargs, self.family.cls_row(), self.alive).items():
            self._seen.setdefault(name, []).append(value)

    def after(self, output: Any) -> Any:
        """The output of a block with all rows in place; None if nothing changes."""
        if self.alive is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        full = self.alive.spread(hidden[None])[0] if hidden.ndim == 2 else self.alive.spread(hidden)
        full = _laid_out(full, hidden)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def mask(self, query: Tensor, key: Tensor, mask: Tensor | None, kernel: str) -> Tensor | None:
        """The mask for an attention call, if it has to be another one."""
        here = slice(self._cursor, self._cursor + key.shape[2])
        self._cursor += key.shape[2]
        bias = None if self.alive is None else self.alive.bias(query)
        if bias is None:
            return None
        if kernel not in MASKED:
            raise self._unfit(
                "pictures or tiles keep different numbers of tokens, and flash attention takes no mask", "sdpa"
            )
        if bias.shape[-1] != key.shape[2]:  # pictures, or windows, of a packed sequence come one after another
            bias = bias[..., here]
        if mask is None:
            return bias
        least = torch.finfo(query.dtype).min
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, least)
        return (mask + bias).clamp(min=least)

    def _follow(self, name: str, value: Any) -> Any:
        """An argument of a block, for the tokens that are left."""
        alive = self.alive
        assert alive is not None
        if value is None or isinstance(value, (bool, int, float, str)) or name in LONGEST:
            return value
        if name in BORDERS:
            return torch.searchsorted(alive.rows, value.to(alive.rows)).unique().to(value)
        places = alive.places()
        if name == "attention_mask" and isinstance(value, Tensor) and value.ndim in (2, 4):
            for axis in (-1, -2)[: value.ndim // 2]:
                if value.shape[axis] == alive.length:
                    value = _columns(value, places, axis)
            return value
        new = self.family.block_argument(name, value, places)
        if new is None:
            raise self._unfit(
                f"blocks of the tower take {name!r}, which cannot be cut", "a method of the connector stage"
            )
        return new

    def _unfit(self, what: str, hint: str) -> UnsupportedError:
        return UnsupportedError(what, where=f"family {self.family.name}, stage encoder", hint=hint)

    # -- a stop ----------------------------------------------------------------------------------------------------

    def _stop(self, number: int, block: int, x: Tensor) -> Tensor:
        """Let a step reduce every part. x: (b, L, d) before the block; returns (b, m, d)."""
        rows, length = x.shape[:2]
        if not self._parts:
            self._survey(rows, length, x.device)
        step, stops = self.steps[number]
        if block == stops[0]:
            self._begin(step)
        flat = x.flatten(0, 1)
        seen = {name: self._back(name, values) for name, values in self._seen.items()}
        values, places = [], []
        for part in self._parts:
            slots = part.slots  # (m, s)
            tokens = flat[slots]  # (m, s, d)
            if part.k < part.total.m:
                found = {name: _window(name, value[slots], block - 1) for name, value in seen.items()}
                if part.pixels is not None:
                    found["pixels"] = Extra(part.pixels[part.total.anchor])
                mean = tokens.detach()[:, 0] if slots.shape[1] == 1 else tokens.detach().float().mean(1).to(x.dtype)
                view = View(
                    mean,
                    part.k,
                    size=part.size,
                    marks=part.marks,
                    extras={name: found[name] for name in step.method.card.needs},
                    left=len(stops) - 1 - stops.index(block),
                    **{name: value[part.total.anchor] for name, value in part.place.items()},  # type: ignore[arg-type]
                )
                answer = self._ask(step, part, view)
                tokens = answer.apply(tokens.flatten(1)).view(answer.m, *tokens.shape[1:])
            values.append(tokens.flatten(0, 1))
            places.append(part.slots.flatten())
        for unit, beside in self._beside:  # what feeds no token goes when its picture begins to lose some
            if all(part.total.m == len(part.index) for part in self._parts if part.unit == unit):
                values.append(flat[beside])
                places.append(beside)
        every, order = torch.cat(places).sort()
        self.alive = self._left(every, places, rows, length)
        for unit, stopped in enumerate(self.done[-1].stops):
            here = [part.rank[part.step.anchor] for part in self._parts if part.unit == unit]
            stopped.append((block, torch.cat(here).sort().values))
        if block == stops[-1]:
            self._conclude()
        return self.alive.wide(torch.cat(values)[order])

    def _back(self, name: str, values: list[Tensor]) -> Tensor:
        """What was read in the block before, for all rows, batch and sequence as one."""
        if self.alive is None:
            return torch.cat([value.flatten(0, 1) for value in values])
        return self.alive.back(torch.cat(values), name not in SUMMED).flatten(0, 1)

    def _ask(self, step: Step, part: Part, view: View) -> Reduction:
        """The method's answer, checked and noted."""
        method, count = _tower(step), step.method.card.count
        try:
            with torch.no_grad():
                marks = {**view.marks, **method.carry(view)}
                answer = method(replace(view, marks=marks))
            if not isinstance(answer, Reduction) or answer.n != view.n or answer.inserted is not None:
                raise MethodError(f"it answered {answer!r}, not a reduction of the view without inserted rows")
            answer = answer.check().sorted()
            many = answer.m > view.k and not view.left and count != "content"
            if many or (answer.m < view.k and count == "fixed"):
                raise MethodError(f"it kept {answer.m} tokens; its card says {count!r}")
        except MethodError as error:
            where = f"method {method}, stage encoder, family {self.family.name}, {view.n} tokens to {view.k}"
            hint = error.hint or "see the docstring of foveate.tokens.Reduction"
            raise MethodError(error.what, where=error.where or where, hint=hint) from error
        part.total, part.step = part.total.then(answer), part.step.then(answer)
        part.size = answer.sizes(part.size)
        part.marks = {name: mark[answer.anchor] for name, mark in marks.items()}
        return answer

    def _left(self, every: Tensor, places: list[Tensor], rows: int, length: int) -> Alive:
        """The rows that are left after a stop. every: ascending; places: the same, part by part, then what is beside."""
        device, full = every.device, rows * length
        at = every.new_full((full,), -1).index_copy(0, every, torch.arange(len(every), device=device))
        home = at.clone()  # what is alive is at home where it is
        size = None
        if self._weighs and not all(part.total.is_drop for part in self._parts):
            size = torch.ones(len(every), device=device)
        counts = [0] * rows
        for part, place in zip(self._parts, places, strict=False):
            total = part.total
            if not total.is_drop:
                slot = every.new_full((total.n,), -1).index_copy(0, total.src, total.dst)
                slot[total.anchor] = torch.arange(total.m, device=device)
                goal = at[part.slots][slot.clamp(min=0)]  # (n, s)
                home[part.rows.flatten()] = torch.where(slot[:, None] < 0, -1, goal).flatten()
                if size is not None:
                    size[at[part.slots]] = part.size[:, None].expand(part.slots.shape)
            counts[part.row] += len(place)
        for place in places[len(self._parts) :]:
            for row, count in enumerate(torch.bincount(place // length, minlength=rows).tolist()):
                counts[row] += count
        return Alive(every, home, counts, length, size)

    # -- a batch ---------------------------------------------------------------------------------------------------

    def _survey(self, rows: int, length: int, device: torch.device) -> None:
        """Find the tokens of every picture among the rows of the tower; all of it on the CPU."""
        family, cls = self.family, self.family.cls_row()
        patches = length - (cls is not None)
        layouts = family.tower_layouts(self.arguments, rows, patches)
        self._units = len(layouts)
        number = torch.arange(rows * length).view(rows, length)
        where = family.per_unit([without(number, cls)], layouts, self.arguments)
        pixels = None if self.pixels is None else family.pixels(self.pixels, layouts, self.arguments)
        if cls is not None:
            self._beside.append((-1, number[:, cls].to(device)))
        for unit, (layout, flat) in enumerate(zip(layouts, where, strict=True)):
            content = (layout.kind == Kind.CONTENT).nonzero()[:, 0]
            source = layout.source[content]
            if (source < 0).any() or len(source.unique()) < source.numel():
                raise self._unfit(
                    "the grid of a picture is interpolated after the tower, so that its tokens share patches",
                    "a method of the connector stage, or a smaller picture",
                )
            mine = flat[source]  # (n, s)
            row = mine[:, 0] // length
            for one in row.unique().tolist():
                index = (row == one).nonzero()[:, 0]
                place = {name: getattr(layout, name)[content[index]] for name in ("tile", "row", "col", "kind")}
                part = Part(
                    unit,
                    one,
                    index.to(device),
                    mine[index].to(device),
                    {name: value.to(device) for name, value in place.items()},
                    Reduction.identity(len(index), device),
                    torch.ones(len(index), device=device),
                )
                if pixels is not None:
                    part.pixels = pixels[unit][source[index].to(device)].flatten(1)
                self._parts.append(part)
            beside = flat[~torch.isin(torch.arange(len(flat)), source)]
            if len(beside):
                self._beside.append((unit, beside.to(device)))

    def _begin(self, step: Step) -> None:
        """Share the budget of a step over the parts."""
        assert step.keep is not None
        sizes, asked = [], []
        for unit in range(self._units):
            parts = [part for part in self._parts if part.unit == unit]
            have = [part.total.m for part in parts]
            k = step.keep.counts([sum(have)])[0]
            shares = have if k == sum(have) else share_out(k, have)
            if sum(shares) != k:
                raise self._unfit(
                    f"{k} tokens for {len(parts)} tiles, each of which keeps one at least", "a larger budget"
                )
            rank = torch.cat([part.index[part.total.anchor] for part in parts]).argsort().argsort().split(have)
            for part, share, mine in zip(parts, shares, rank, strict=True):
                part.step, part.marks, part.k, part.rank = (
                    Reduction.identity(part.total.m, mine.device),
                    {},
                    share,
                    mine,
                )
            sizes.append(sum(have))
            asked.append(k)
        self.done.append(Done(sizes, asked, [], [[] for _ in asked]))
        self._weighs |= _tower(step).weighs

    def _conclude(self) -> None:
        """What the present step did, unit by unit."""
        done = self.done[-1]
        for unit in range(self._units):
            parts = [part for part in self._parts if part.unit == unit]
            n = sum(part.step.n for part in parts)
            untouched = all(part.k == part.step.n for part in parts)
            done.reductions.append(None if untouched else joined([(part.rank, part.step) for part in parts], n))

    def outcome(self) -> list[Done]:
        """What every step did, after the tower."""
        if len(self.done) < len(self.steps) or not all(done.reductions for done in self.done):
            raise self._unfit("the tower did not run its blocks", "a method of the connector stage")
        return self.done


def _tower(step: Step) -> TowerMethod:
    assert isinstance(step.method, TowerMethod)
    return step.method


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """In the memory order of ``like``: kernels round by it, and some towers keep features of a token apart."""
    return x if like.stride(-1) == 1 or x.shape[-1] == 1 else x.mT.contiguous().mT


def _window(name: str, value: Tensor, layer: int) -> Extra:
    """An extra of tokens from what was read of their patches (m, s, ...)."""
    return Extra(value.sum(1).mT if name in SUMMED else value.mean(1), layer)


def _columns(mask: Tensor, places: Tensor, axis: int) -> Tensor:
    """Some columns of a mask (b or 1, ..., L), others for each row of the batch. places: (b, m)."""
    mask = mask.movedim(axis, 1)  # (b or 1, L, ...)
    mask = mask.expand(len(places), *mask.shape[1:])
    index = places.view(*places.shape, *[1] * (mask.ndim - 2)).expand(-1, -1, *mask.shape[2:])
    return mask.gather(1, index).movedim(1, axis)
