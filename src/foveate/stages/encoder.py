"""Encoding: keeps what methods will ask for while the model turns pictures into features.

``generate`` encodes before it calls ``forward``, repeats features for beams and matches them to placeholders; the choice
of tokens may need the question, which only ``forward`` sees. So nothing is dropped here; what steps inside the tower
left (``tower.py``) is dropped later, too. ``get_image_features`` of this one model is wrapped (an instance attribute, gone
with the run); its output carries an :class:`Encoded` along, from which the connector stage makes its views once the prompt
is there.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import UnsupportedError
from ..families import Family, Layout
from ..method import STAGES
from ..plan import Plan, Step
from ..tokens import Extra
from . import tap, tower
from .passage import Done, Passage
from .reading import READ, SUMMED, Read, read

CARRIED = "_foveate_encoded"


EARLY = "early"


@dataclass(frozen=True)
class Wanted:
    """What a plan wants from the encoder.

    Attributes:
        needs: extras read in the tower at the layer that scores, or of its pixels.
        early: shares of the tower's depth at which attention is read as well.
        before: features before the connector.
        smaller: text of the steps that make the picture smaller or reduce it in the tower, or "".
    """

    needs: frozenset[str]
    early: frozenset[float]
    before: bool
    smaller: str

    @classmethod
    def by(cls, plan: Plan, before: bool = False) -> Wanted:
        """What is collected for a plan; steps that drop nothing want nothing. before: features before the connector, too."""
        steps = _busy(plan)
        late = [step for step in steps if step.stage != "encoder"]  # those inside look for themselves
        cards = [step.method.card for step in late]
        marks = [need for step in steps for need in step.method.marked_by or ()]
        return cls(
            frozenset([*(need for card in cards for need in card.needs), *marks]) & READ,
            frozenset(share_of(step) for step in late if EARLY in step.method.card.needs),
            (before and bool(late)) or any(card.features == "before" for card in cards),
            " > ".join(str(step) for step in steps if step.stage in ("input", "encoder")),
        )

    def serves(self, other: Wanted) -> bool:
        """Whether what was collected for this is enough for the other."""
        enough = self.needs >= other.needs and self.early >= other.early and self.before >= other.before
        return enough and self.smaller == other.smaller


def _busy(plan: Plan) -> list[Step]:
    """The steps before the language model that may change something."""
    early = [step for step in plan.steps if STAGES.index(step.stage) < STAGES.index("layers")]
    return [step for step in early if step.keep is None or not step.keep.is_all]


def share_of(step: Step) -> float:
    """The share of the tower's depth at which a step wants its "early" attention.

    Raises:
        UnsupportedError: if its method does not say, or says something else.
    """
    share = getattr(step.method, EARLY, None)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
        raise UnsupportedError(
            f"early={share!r} is no share of the tower's depth",
            where=f"method {step.method.name}",
            hint='a method whose card needs "early" has a field early: float, from 0 (first block) to 1 (last)',
        )
    return float(share)


def early_name(share: float) -> str:
    """The name under which attention read at a share of the depth travels."""
    return f"{EARLY} {share}"


@dataclass
class Encoded:
    """What travels with one encoder output.

    Attributes:
        wanted: what was collected.
        layouts: one per unit, in placeholder order.
        rows: the features as they left the encoder, in pieces whose borders are borders of units, too.
        planes: deep-stack features, (all rows, d) each.
        extras: name -> one :class:`Extra` per unit, aligned with the unit's tokens.
        before: (tokens, d) features of each unit before the connector, where a step asked for them; None for a unit whose
            tokens were mixed after it.
        inside: what each step of the encoder stage did.
        seconds: clocks of what choosing in the tower took.
    """

    wanted: Wanted
    layouts: list[Layout]
    rows: list[Tensor]
    planes: list[Tensor]
    extras: dict[str, list[Extra]] = field(default_factory=dict)
    before: list[Tensor | None] | None = None
    inside: list[Done] = field(default_factory=list)
    seconds: list[Callable[[], float]] = field(default_factory=list)


def encoded_of(output: Any, plan: Plan, before: bool = False) -> Encoded | None:
    """What :func:`watch` put on an encoder output, if it serves the plan: it may have been made for another one."""
    encoded = getattr(output, CARRIED, None)
    return encoded if encoded is not None and encoded.wanted.serves(Wanted.by(plan, before)) else None


def watch(family: Family, plan: Plan, undo: list[Callable[[], None]], clock: Any = None, before: bool = False) -> None:
    """Wrap the encoder of ``family`` for ``plan``. What undoes it is added to ``undo`` step by step.

    Args:
        family, plan: of the run.
        undo: gets a function for each thing that was done.
        clock: starts a clock on a device, for the time that choosing in the tower takes.
        before: keep features before the connector, whether a method asks for them or not.

    Raises:
        UnsupportedError: if the tower cannot give what the plan needs, or not be reduced.
    """
    steps, wanted = _busy(plan), Wanted.by(plan, before)
    inside = [step for step in steps if step.stage == "encoder"]
    resize = next((step for step in steps if step.stage == "input"), None)
    if resize is not None:
        _check_smaller(family, plan, resize, bool(wanted.needs or wanted.early or inside))
    want_before = family.rowwise is not None and wanted.before
    core, original = family.core, family.core.get_image_features
    shelf = threading.local()  # what is seen during one call, per thread

    if inside:
        tower.check(family, inside)
        tower.hook(family, inside, shelf, undo)
    layers = {name: family.score_layer() for name in wanted.needs}
    for share in wanted.early:
        layers[early_name(share)] = round(share * (len(family.blocks()) - 1))
    for layer in sorted(set(layers.values())):
        names = {name.split()[0]: name for name in layers if layers[name] == layer}
        shares = [name for name in layers if layers[name] == layer and name.startswith(EARLY)]
        undo.append(tap.tap(family.attention(layer), _reader(family, shelf, {*names} - {EARLY}, shares)))
    if want_before:
        connector = core.get_submodule(family.rowwise)

        def keep_input(module, args):
            if getattr(shelf, "seen", None) is not None:
                shelf.before.append(args[0])

        undo.append(connector.register_forward_pre_hook(keep_input).remove)

    @functools.wraps(original)
    def encode(*args, **kwargs):
        bound = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        arguments = {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}
        if getattr(shelf, "video", False):
            return original(*args, **kwargs)
        if arguments.get("return_dict") is False:
            if inside:
                raise UnsupportedError(
                    "what was reduced in the tower travels with the encoder's output, and a tuple cannot carry it",
                    where=f"get_image_features, plan {plan}",
                    hint="leave out return_dict=False",
                )
            return original(*args, **kwargs)
        outer = dict(vars(shelf))
        shelf.seen, shelf.before = {}, []
        shelf.passage = Passage(family, inside, arguments, clock) if inside else None
        try:
            if resize is None:
                output = original(**arguments | {"return_dict": True})
                layouts = family.layouts(arguments, output)
            else:
                from .input import encode_smaller

                output, layouts = encode_smaller(family, resize, original, arguments)
            seen, before, passage = shelf.seen, shelf.before, shelf.passage
        finally:
            vars(shelf).clear()
            vars(shelf).update(outer)
        encoded = Encoded(wanted, layouts, family.rows(output), family.planes(output))
        if passage is not None:
            encoded.inside, encoded.seconds = passage.outcome(), passage.seconds
        row = family.cls_row()
        for name, layer in layers.items() if resize is None else ():
            values = family.per_unit(seen[name].whole(name.split()[0], row), layouts, arguments)
            origin = domain(family, layer) if name.split()[0] in SUMMED else ""
            encoded.extras[name] = [
                Extra(to_tokens(name, value, one), layer, origin) for value, one in zip(values, layouts, strict=True)
            ]
        # Where tower tokens were mixed after the connector there is no single row before it for each token. That is asked of
        # each unit alone: what else is in the batch must not matter.
        if want_before and resize is None:
            rows = family.per_unit(before, layouts, arguments)
            encoded.before = [
                value[one.source[:, 0].to(value.device).clamp(min=0)] if one.source.shape[1] == 1 else None
                for value, one in zip(rows, layouts, strict=True)
            ]
        setattr(output, CARRIED, encoded)
        return output

    _shadow(core, "get_image_features", encode, undo)
    if inside and hasattr(core, "get_video_features"):
        video = core.get_video_features

        @functools.wraps(video)
        def untouched(*args, **kwargs):  # some cores encode a video by calling get_image_features
            shelf.video = True
            try:
                return video(*args, **kwargs)
            finally:
                del shelf.video

        _shadow(core, "get_video_features", untouched, undo)


def _shadow(core: Any, name: str, function: Callable, undo: list[Callable[[], None]]) -> None:
    """Let an attribute of the instance stand before a method; somebody else's comes back with the undo."""
    shadowed = core.__dict__.get(name)
    setattr(core, name, function)

    def unwrap() -> None:
        if shadowed is None:
            core.__dict__.pop(name, None)
        else:
            setattr(core, name, shadowed)

    undo.append(unwrap)


def _check_smaller(family: Family, plan: Plan, resize: Step, looks: bool) -> None:
    """Raise UnsupportedError unless the tower can be given a smaller picture under this plan."""
    if not family.resizable:
        fault = family.one_size()
        raise UnsupportedError(fault.what, where=f"method {resize.method.name}, {fault.where}", hint=fault.hint)
    if looks or sum(s.stage == "input" for s in _busy(plan)) > 1:
        raise UnsupportedError(
            f"what is read or reduced in the tower belongs to the smaller picture, which {plan} cannot look up later",
            where=f"method {resize.method.name}, stage input",
            hint="one step on the input, followed by methods that need no tower attention and no keys",
        )


def _reader(family: Family, shelf: Any, needs: set[str], shares: list[str]) -> tap.Reader:
    """Reads one module of the tower for steps after it. shares: names under which its attention is wanted as "early"."""
    row, every = family.cls_row(), needs | ({"attention"} if shares else set())

    def look(module, query, key, mask, kwargs):
        seen = getattr(shelf, "seen", None)
        if seen is None:
            return None
        alive = None if shelf.passage is None else shelf.passage.alive
        for name, value in read(every, query, key, mask, kwargs, row, alive).items():
            for goal in [*([name] if name in needs else []), *(shares if name == "attention" else [])]:
                seen.setdefault(goal, Read(alive=alive)).pieces.append(value)
        return None

    return look


def domain(family: Family, layer: int) -> str:
    """Over which keys the softmax of a layer ran."""
    over = "tokens of its window" if family.in_windows(layer) else "tower's tokens"
    return f"mean over the {over}" if family.cls_row() is None else f"CLS row over the {over}"


def to_tokens(name: str, value: Tensor, layout: Layout) -> Tensor:
    """From tower tokens (p, ...) to the unit's tokens: attention adds up over the patches a token joins, keys average."""
    source = layout.source.to(value.device)
    there = (source >= 0)[..., None].to(value.dtype)
    gathered = value[source.clamp(min=0)] * there  # (n, s, ...)
    total = gathered.sum(1)
    if name.split()[0] in SUMMED:
        return total.mT  # (h, n)
    return total / there.sum(1).clamp(min=1)
