"""Reduction between the layers of the language model: layers after it run on fewer tokens.

As in the vision tower, nothing outside of the layers ever sees fewer rows. Before a layer the columns that run are gathered,
after it they are put back; so deep-stack features, hidden states of any layer, the final norm and the loss stay stock, and
a token that waits has its state at hand when it comes back. Rotary tables, masks and positions are gathered once for each
set of columns, not once for each layer. Caches hold what ran: their layers have different lengths, and know it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedError
from ..families import Family
from ..method import BETWEEN, LayerMethod, RerunMethod, WorkMethod
from ..plan import Plan, Step
from . import cache as caches
from . import evict, tap
from .fit import KERNELS
from .follow import token_types
from .later import Later
from .picture import Picture
from .prefill import Prefill
from .prompt import Base, all_alive, check_mask
from .question import text_columns
from .strip import Strip
from .work import Feed

UNREAD = {"ahead_row", "text", "first", "first_text"}  # not read in the layer before

__all__ = ["Later", "Prefill", "check", "hook", "prefill", "shortened", "steps_of"]


def steps_of(plan: Plan) -> list[Step]:
    """A plan's steps between the layers that may change something."""
    some = [s for s in plan.steps if s.stage == "layers" and not isinstance(s.method, RerunMethod)]
    return [s for s in some if s.keep is None or not s.keep.is_all]


def check(family: Family, steps: Sequence[Step]) -> None:
    """Raise UnsupportedError unless the steps can run between these layers."""
    depth = len(family.layers()) if steps else 0
    model: Any = family.model
    kernel = model.config.get_text_config()._attn_implementation or "eager"
    for step in steps:
        where, method, fault = f"method {step.method.name}, stage layers, family {family.name}", step.method, ""
        if not isinstance(method, LayerMethod):
            fault, hint = "it is no LayerMethod, and does not say between which layers it runs", "at=connector"
        elif (
            not (stops := list(method.stops(depth)))
            or stops != sorted(set(stops))
            or not 0 <= stops[0] <= stops[-1] < depth
        ):
            fault, hint = f"its stops are {stops}, the language model has {depth} layers", "other layers"
        elif isinstance(method, WorkMethod) and method.attends and kernel not in KERNELS:
            fault, hint = f"attention by {kernel!r} cannot be changed row by row", 'attn_implementation="sdpa"'
        elif set(method.card.needs) - set(BETWEEN):
            fault, hint = (
                f"it needs {', '.join(sorted(set(method.card.needs) - set(BETWEEN)))} there",
                ", ".join(BETWEEN),
            )
        if fault:
            raise UnsupportedError(fault, where=where, hint=hint)


def shortened(cache: Any) -> bool:
    """Whether some layer of a cache holds fewer columns than the cache counts, or has heads that do not look at all."""
    layers = getattr(cache, "layers", ())
    return any(caches.columns_of(one) is not None or getattr(one, "blind", None) is not None for one in layers)


def hook(
    family: Family,
    steps: Sequence[Step],
    evictions: Sequence[Step],
    shelf: threading.local,
    undo: list[Callable[[], None]],
) -> None:
    """Hook the layers, so that the call on ``shelf`` is asked before and after each.

    Args:
        steps, evictions: of the plan, between the layers and on the cache.
        undo: gets what ends it.
    """
    looked: set[int] = set()
    layers = family.layers()
    if any(step.method.card.needs for step in evictions):
        looked |= {number for number in range(len(layers)) if evict.thinned(family, number)}
    for step in steps:
        method: Any = step.method
        needs = set(method.card.needs)
        stops: Sequence[int] = [stop for stop in method.stops(len(layers)) if method.looks(stop, len(layers))]
        looked |= set(stops) if "ahead_row" in needs else set()
        looked |= {stop - 1 for stop in stops if stop} if needs - UNREAD else set()
    attended: set[int] = set()
    for step in steps:
        if isinstance(step.method, WorkMethod):
            stops = step.method.stops(len(layers))
            attended |= set(stops) if step.method.attends else set()
            for number in stops:
                Feed(shelf, number, family.layer_feed(number), undo)
    for number in sorted(looked | attended):
        undo.append(tap.tap(family.layer_attention(number), _reader(shelf, number)))
    for number in sorted(attended):
        undo.append(tap.instead(family.layer_attention(number), _attender(shelf, number)))

    def each(number: int, layer: nn.Module) -> None:
        def before(module, args, kwargs):
            call = getattr(shelf, "call", None)
            return None if call is None else call.before(number, module, args, kwargs)

        def after(module, args, kwargs, output):
            call = getattr(shelf, "call", None)
            return None if call is None else call.after(number, kwargs, output)

        undo.append(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        undo.append(layer.register_forward_hook(after, with_kwargs=True).remove)

    for number, layer in enumerate(layers):
        each(number, layer)


def _attender(shelf: threading.local, number: int) -> tap.Attend:
    def attend(kernel, query, key, value, mask, scale):
        call = getattr(shelf, "call", None)
        if call is None:
            return kernel(query, key, value, mask)
        return call.attend(number, kernel, query, key, value, mask, scale)

    return attend


def _reader(shelf: threading.local, number: int) -> tap.Reader:
    def look(module, query, key, mask, kwargs):
        call = getattr(shelf, "call", None)
        if call is not None:
            call.look(number, query, key, mask, kwargs)

    return look


def prefill(
    family: Family,
    plan: Plan,
    kwargs: dict[str, Any],
    new: dict[str, Any],
    prompts: list[list[Picture]],
    repeat: int,
    base: Base,
    past: Any,
    clock: Any,
) -> tuple[dict[str, Any], Prefill]:
    """What the hooks have to know of a prompt, and its arguments.

    Args:
        family, plan: of the run.
        kwargs, new: the arguments of the call, before and after the steps before the language model.
        prompts: the pictures of each prompt, as those steps left them.
        repeat: batch rows per prompt.
        base: the columns with which the prompt enters the language model.
        past: the cache, or None.
        clock: starts a clock on a device.

    Raises:
        UnsupportedError: if it cannot lose columns between the layers.
    """
    where = f"family {family.name}, plan {plan}"
    if past is not None:
        caches.check_supported(past, where)
    check_mask(family, plan, new.get("attention_mask"))
    model: Any = family.model
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        raise UnsupportedError(
            "gradient checkpointing runs layers a second time, when what ran in them is forgotten",
            where=where,
            hint="model.gradient_checkpointing_disable(), or a method before the language model",
        )
    types = {name: mine for name, (_, mine) in token_types(kwargs).items()}
    text = base.take(text_columns(kwargs) & ~family.placeholders(kwargs["input_ids"], kwargs | types))
    ends = base.ends(text_columns(kwargs))
    strips = [
        Strip.of(row, picture, base.columns(row, picture), row % repeat == 0)
        for row in range(len(text))
        for picture in prompts[row // repeat]
    ]
    stored = 0 if past is None else caches.stored_columns(past)
    call = Prefill(family, stored, base.valid.shape[1], steps_of(plan), strips, text, base, clock)
    memory = caches.memory_of(past)
    call.alive = all_alive(kwargs, base.valid, past, memory)
    for step in evict.steps_of(plan):
        call.evictor = evict.Evictor(family, step, call, ends)
    if memory is not None:
        memory.prepared = True
    if isinstance(labels := new.get("labels"), Tensor):
        call.labels = labels.clone()
        new = {**new, "labels": call.labels}
    return new, call
