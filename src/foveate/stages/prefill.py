"""What is known of one call while the language model's layers run; see ``layers.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MethodError, UnsupportedError
from ..families import Family
from ..method import LayerMethod
from ..plan import Step
from ..routes import Route, Work
from ..tokens import Reduction, View
from . import cache as caches
from .evict import Evictor
from .fit import table_for
from .follow import IGNORED, Cut
from .glance import Glance
from .later import Later, held_in
from .prompt import Base
from .seen import Seen
from .strip import Strip
from .work import Blind, Kernel, attend

TAKEN = ("position_ids", "text_position_ids")


class Prefill(Later):
    """A call with pictures, whose tokens leave, merge, wait and come back between the layers.

    Args:
        family, base, fresh: see :class:`Later`.
        steps: of the plan, those that may change something.
        strips: the images, row by row; only those with tokens.
        text: (b, fresh) columns that hold text of the prompt: no padding, no picture, no answer to be scored.
        start: the columns with which the prompt enters the language model.
        clock: starts a clock on a device.
    """

    def __init__(
        self,
        family: Family,
        base: int,
        fresh: int,
        steps: Sequence[Step],
        strips: list[Strip],
        text: Tensor,
        start: Base,
        clock: Any,
    ) -> None:
        super().__init__(family, base, fresh)
        self.strips, self.text, self.clock = strips, text, clock
        self.valid, self.counts, self.right = start.valid, start.counts, start.right
        self.alive = start.valid  # (b, base + fresh) columns that are not padding
        self.labels: Tensor | None = None  # of this call alone; those after a gap will not count
        self.depth = len(family.layers())
        self.steps = steps
        self.stops: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            for stop in step.method.stops(self.depth):  # type: ignore[attr-defined]
                self.stops.setdefault(stop, []).append(i)
        self.cut: Cut | None = None  # what runs, if not everything
        self.cuts: dict[int, Cut] = {}  # by layer
        self.seconds: list[Callable[[], float]] = []
        self.seen: Seen | None = None
        self._full: Tensor | None = None
        self.glance = Glance(self)
        self.evictor: Evictor | None = None
        self.number = -1  # of the present layer
        self.start: Tensor | None = None  # states that entered the first layer, where a step looks at them
        self.pairs: dict[int, float] = {}  # queries times keys that a head looked at, where that is less than all
        self.blinds: dict[int, Blind] = {}

    # -- a layer ---------------------------------------------------------------------------------------------------

    def before(self, number: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """The arguments of a layer, for the columns that run; None if nothing changes."""
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        given, self.number = states, number
        if number == 0 and any("first" in step.method.card.needs for step in self.steps):
            self.start = states
        for strip in self.strips:
            strip.work = None
        if number in self.stops:
            watch = self.clock(states.device)
            states = self._stop(number, layer, states, args, kwargs)
            self.seconds.append(watch.stop())
        self.seen = None
        self._full = None
        if self.cut is None and held_in(kwargs, number) is None:
            if states is given:
                return None
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
        if self.cut is not None:
            self.cuts[number] = self.cut
            self._full = states
        return self.fitted(number, states, args, kwargs)

    def fitted(self, number: int, states: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A layer's arguments for the columns that run at present. states: (b, fresh, d)."""
        cut, new, held = self.cut, dict(kwargs), held_in(kwargs, number)
        index = None if cut is None else cut.index
        if cut is not None and index is not None:
            states = cut.rows(states)
            for name in TAKEN:
                if isinstance(kwargs.get(name), Tensor):
                    new[name] = self._once(name, kwargs[name], cut, cut.take)
            if kwargs.get("position_embeddings") is not None:
                tables = kwargs["position_embeddings"]
                new["position_embeddings"] = self._once("tables", tables, cut, lambda x: table_for(x, index))
        mask, columns = kwargs.get("attention_mask"), None if held is None else caches.columns_of(held)
        keys = lambda: self._keys(number, held, cut, states)  # noqa: E731
        new["attention_mask"] = self._once(
            ("mask", id(columns), self.family.layer_kind(number)),
            mask,
            cut,
            lambda x: self._mask(x, index, keys(), states),
        )
        if "flash" in self.kernel and new["attention_mask"] is None and len(states) == 1 and not self.base:
            # Flash reads gaps in position ids as borders of packed sequences; say it is one sequence.
            borders = torch.tensor([0, states.shape[1]], dtype=torch.int32, device=states.device)
            new |= {f"cu_seq_lens_{x}": borders for x in "qk"} | {f"max_length_{x}": states.shape[1] for x in "qk"}
        return ((states, *args[1:]), new) if args else (args, {**new, "hidden_states": states})

    def after(self, number: int, kwargs: dict[str, Any], output: Any) -> Any:
        """The output of a layer with all columns in place; None if nothing changes."""
        if self._full is None or self.cut is None:
            return None
        states = output[0] if isinstance(output, tuple) else output
        if number == self.depth - 1:
            self.drop_labels()
        full = self.cut.back(states, self._full)
        self._full = None
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def look(self, number: int, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> None:
        """Note what the steps before the next layer may look at."""
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        self.seen = Seen(number, query, key, kwargs["value"], mask, scale)
        self.glance.enough(number)
        if self.evictor is not None:
            self.evictor.look(self.seen)

    def _once(self, name: Any, value: Any, cut: Cut | None, make: Callable[[Any], Any]) -> Any:
        """What is made of a value for a set of columns, made once. Values are told apart by identity: some models have a
        table for each kind of layer.
        """
        key = (name, id(value), id(cut))
        if key not in self._fitted:
            self._fitted[key] = ((value, cut), make(value))  # held on to, so that the identities stay theirs
        return self._fitted[key][1]

    # -- a stop ----------------------------------------------------------------------------------------------------

    def _stop(self, number: int, layer: nn.Module, states: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Ask the steps what happens before a layer. states: (b, fresh, d); returns them, merged tokens in place."""
        for i in self.stops[number]:
            step, changed = self.steps[i], False
            stops = list(step.method.stops(self.depth))  # type: ignore[attr-defined]
            if number == stops[0]:
                self._begin(step)
            look = self.glance.at(number, layer, states, args, kwargs)
            for strip in self.strips:
                if strip.k < strip.entered or step.keep is None:
                    states, one = self._ask(step, strip, number, stops, states, look)
                    changed |= one
            if number == stops[-1]:
                for strip in self.strips:
                    strip.steps.append((strip.k, strip.count))
            if changed:
                self._assemble(states.device)
        return states

    def _begin(self, step: Step) -> None:
        """Give every image its budget."""
        for row in {strip.row for strip in self.strips}:
            mine = [strip for strip in self.strips if strip.row == row]
            have = [strip.count for strip in mine]
            wanted = have if step.keep is None else step.keep.counts(have)
            for strip, n, k in zip(mine, have, wanted, strict=True):
                strip.k, strip.entered = k, n
                if step.keep is not None:
                    there = sum(have) if step.keep.unit == "total" else n
                    strip.capped |= step.keep.unit != "share" and step.keep.amount > there

    def _ask(
        self, step: Step, strip: Strip, number: int, stops: list[int], states: Tensor, look: Any
    ) -> tuple[Tensor, bool]:
        """One step on one image: (states, whether anything changed)."""
        method, n = step.method, strip.count
        assert isinstance(method, LayerMethod)
        if not n:
            return states, False
        where = f"method {method}, before layer {number}, family {self.family.name}, {n} tokens to {strip.k}"
        on = strip.content()
        places = {
            name: getattr(strip.layout, name)[on.to("cpu")].to(states.device) for name in ("tile", "row", "col", "kind")
        }
        marks = dict(strip.marks)
        needs = method.card.needs if method.looks(number, self.depth) else ()
        if strip.running is not None:
            marks["waiting"] = ~strip.running[on]
        columns = strip.columns[on]
        try:
            with torch.no_grad():
                view = View(
                    states[strip.row].detach()[columns],
                    min(strip.k, n),
                    size=strip.size[on],
                    marks=marks,
                    extras={need: look(need, strip, columns) for need in needs},
                    ordinal=strip.picture.ordinal,
                    left=len(stops) - 1 - stops.index(number),
                    layer=number,
                    depth=self.depth,
                    entered=strip.entered,
                    **places,
                )
                carried = dict(method.carry(view))
                answer = method(replace(view, marks={**marks, **carried}))
            strip.marks |= carried
            if answer is None:
                return states, False
            if isinstance(answer, Work):
                strip.work = answer.check(n)
                return states, False
            if isinstance(answer, Route) and answer.n == n:
                strip.route(answer.check().running, number)
                return states, True
            if not isinstance(answer, Reduction) or answer.n != n:
                raise MethodError(
                    f"it answered {answer!r}, neither a reduction nor a route of the view, nor work, nor None"
                )
            answer = answer.check(empty=True).sorted()
            fixed = method.card.count == "fixed" and method.card.budget == "left" and step.keep is not None
            if fixed and (answer.m < strip.k or (answer.m > strip.k and not view.left)):
                raise MethodError(f"it kept {answer.m} tokens; its card says 'fixed'")
        except MethodError as error:
            hint = error.hint or "see the docstring of foveate.method.LayerMethod"
            raise MethodError(error.what, where=error.where or where, hint=hint) from error
        before = strip.columns
        lifted = strip.follow(answer, number)
        if not lifted.is_drop:
            merged = lifted.apply(states[strip.row][before])
            row = torch.full_like(strip.columns, strip.row)
            states = states.index_put((row, strip.columns), merged)
        return states, True

    def _assemble(self, device: torch.device) -> None:
        """Work out the columns that run."""
        runs, counts = self.valid.clone(), list(self.counts)
        for strip in self.strips:
            now = strip.runs
            runs[strip.row, strip.every] = False
            runs[strip.row, now] = True
            counts[strip.row] -= len(strip.every) - len(now)
        if min(counts) < 1:
            raise UnsupportedError("a prompt of pictures alone would have no token left", where=self.where, hint="text")
        full = counts == self.counts
        self.cut = None if full else Cut.keeping(runs, counts, self.right)

    # -- afterwards ------------------------------------------------------------------------------------------------

    def attend(
        self, number: int, kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """A layer's attention, without what it leaves out for the images."""
        return attend(self, number, kernel, query, key, value, mask, scale)

    def blind(self, number: int, row: int, strip: Strip, heads: Tensor) -> None:
        """Note that some heads of a layer do not look at an image. heads: (heads,) True for those that do."""
        rows, total = len(self.valid), self.base + self.fresh
        if number not in self.blinds:
            self.blinds[number] = Blind.none(rows, total, len(heads), heads.device)
        blind = self.blinds[number]
        blind.columns[row, strip.runs.to(heads.device) + self.base] = True
        blind.heads[row] = heads

    def slots(self, device: torch.device) -> Tensor:
        """(b, fresh) slot of every column, -1 for those that do not run at present."""
        if self.cut is None:
            return torch.arange(self.fresh, device=device).expand(len(self.valid), -1)
        return self.cut.slots().to(device)

    def took(self) -> float:
        """Seconds spent choosing between the layers."""
        return sum(each() for each in self.seconds)

    def drop_labels(self) -> None:
        """Labels that are predicted from a column that did not run in the last layer do not count."""
        if self.labels is not None and self.cut is not None:
            ran = torch.zeros_like(self.valid).scatter(1, self.cut.index, self.cut.alive)
            self.labels[:, 1:][~ran[:, :-1].to(self.labels.device)] = IGNORED

    def remember(self, cache: Any) -> None:
        """Write into a cache, which has a memory, which columns its layers hold."""
        total = self.base + self.fresh
        memory, dead, sliding = caches.memory_of(cache), False, False
        for number, blind in self.blinds.items():
            cache.layers[number].blind = blind
        if memory is not None and self.blinds:
            memory.needs_run = True
        for number, layer in enumerate(cache.layers[: self.depth]):
            cut, old = self.cuts.get(number), caches.columns_of(layer)
            if cut is None and old is None:
                continue
            device = self.valid.device
            index, alive = torch.arange(self.base, total, device=device).expand(len(self.valid), -1), self.valid
            if cut is not None:
                index, alive, dead = cut.index + self.base, cut.alive, dead or not cut.all_alive
            if old is not None:
                first, lives = old.now(self.base - old.gone, self.base)
            else:
                first = torch.arange(self.base, device=device).expand(len(self.valid), -1)
                lives = torch.ones_like(first, dtype=torch.bool)
            layer.columns = caches.Columns(torch.cat([first, index], 1), torch.cat([lives, alive], 1), total)
            sliding = sliding or bool(getattr(layer, "sliding_window", 0))
        if memory is not None and (dead or sliding or (self.cuts and self.kernel == "eager")):
            memory.needs_run = True  # the stock model alone would have no fitting mask
