"""Reduction between the blocks of the vision tower: the blocks after it run on fewer tokens, so that time really falls.

Outside of its blocks the tower never sees fewer rows. Before a block the rows that are alive are gathered, after it they
are put back at their places; so hidden states of any layer, deep-stack features, connectors that join neighbours and
``generate``, which matches features to placeholders, all stay stock. Tokens that a connector joins are reduced together:
a method sees each such window as one token, and what it answers is done to every patch of the window alike. What
remains to be dropped after the tower travels with the encoder's output, and is the connector stage's first step.

Each picture, or tile, is reduced by itself. Where the rows of the tower's batch keep different numbers of tokens, the
shorter ones get dead slots that a mask hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedError
from ..families import Family
from ..method import TowerMethod
from ..plan import Step
from . import tap
from .passage import MASKED, Passage
from .reading import READ


def check(family: Family, steps: Sequence[Step]) -> None:
    """Raise UnsupportedError unless the steps can run in this tower."""
    if steps and type(family).tower_layouts is Family.tower_layouts:
        family.tower_layouts({}, 0, 0)  # raises
    depth, end = family.last_block() + 1, -1
    attention: Any = family.attention(0)
    kernel = attention.config._attn_implementation
    for step in steps:
        where, method = f"method {step.method.name}, stage encoder, family {family.name}", step.method
        fault = ""
        if not isinstance(method, TowerMethod):
            fault, hint = "it is no TowerMethod, and does not say between which blocks it runs", "at=connector"
        elif (
            not (stops := list(method.stops(depth)))
            or stops != sorted(set(stops))
            or not 0 <= stops[0] <= stops[-1] < depth
        ):
            fault, hint = f"its stops are {stops}, the tower has {depth} blocks that count", "a tower of more blocks"
        elif set(method.card.needs) - (READ if stops[0] else set()) - {"pixels"}:
            fault, hint = f"it needs {', '.join(method.card.needs)} before they are there", "pixels, or a later block"
        elif stops[0] <= end:
            fault, hint = f"it begins before block {stops[0]}, where the step before it still runs", "one of the two"
        elif step.keep is not None and step.keep.unit == "total":
            fault = f"keep={step.keep} needs all pictures of a prompt, the tower sees them one by one"
            hint = "a share, or tokens per image"
        elif step.keep is not None and step.keep.unit != "share" and not family.units_are_images:
            fault = f"keep={step.keep} counts images, and only the prompt tells which tiles make one"
            hint = "a share, which every tile keeps of its tokens; or a method of the connector stage"
        elif method.weighs and kernel not in MASKED:
            fault = f"attention that counts merged tokens needs a mask, and {kernel!r} takes none"
            hint = 'attn_implementation="sdpa", or the method without it (proportional=False)'
        if fault:
            raise UnsupportedError(fault, where=where, hint=hint)
        end = stops[-1]


def hook(family: Family, steps: Sequence[Step], shelf: Any, undo: list[Callable[[], None]]) -> None:
    """Hook the tower's blocks, so that the :class:`Passage` on ``shelf`` can reduce between them. undo: gets what ends it."""
    depth, looks = family.last_block() + 1, dict[int, frozenset[str]]()
    for step in steps:
        stops = step.method.stops(depth)  # type: ignore[attr-defined]
        looks |= {stop - 1: frozenset(step.method.card.needs) & READ for stop in stops if stop}

    def passage() -> Passage | None:
        return getattr(shelf, "passage", None)

    def first(module, args, kwargs):
        if (here := passage()) is not None:
            here.pixels = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)

    def each(block: nn.Module, number: int) -> None:
        attention: Any = family.attention(number)
        kernel = attention.config._attn_implementation

        def before(module, args, kwargs):
            here = passage()
            return None if here is None else here.before(module, number, args, kwargs)

        def after(module, args, output):
            here = passage()
            return None if here is None else here.after(output)

        def look(module, query, key, mask, kwargs):
            here = passage()
            if here is None:
                return None
            new = here.mask(query, key, mask, kernel)
            if looks.get(number):
                here.look(looks[number], query, key, mask if new is None else new, kwargs)
            return new

        # Before the library's own hooks, which keep hidden states: they are to see all rows.
        undo.append(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        undo.append(block.register_forward_hook(after, prepend=True).remove)
        undo.append(tap.tap(attention, look))

    undo.append(family.tower().register_forward_pre_hook(first, with_kwargs=True).remove)
    for number, block in enumerate(family.blocks()):
        each(block, number)
