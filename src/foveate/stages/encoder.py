"""Encoding: keeps what methods will ask for while the model turns pictures into features.

``generate`` encodes before it calls ``forward``, repeats features for beams and matches them to placeholders; the choice
of tokens may need the question, which only ``forward`` sees. So nothing is dropped here. ``get_image_features`` of this
one model is wrapped (an instance attribute, gone with the run); its output carries an :class:`Encoded` along, from which
the connector stage makes its views once the prompt is there.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..families import Family, Layout
from ..plan import Plan
from ..tokens import Extra
from . import tap

CARRIED = "_foveate_encoded"


@dataclass(frozen=True)
class Wanted:
    """What a plan wants from the encoder.

    Attributes:
        needs: extras read in the tower.
        before: features before the connector.
        smaller: text of the step that makes the picture smaller, or "".
    """

    needs: frozenset[str]
    before: bool
    smaller: str

    @classmethod
    def by(cls, plan: Plan) -> Wanted:
        """What is collected for a plan; steps that drop nothing want nothing."""
        steps = [step for step in plan.steps if step.keep is None or not step.keep.is_all]
        cards = [step.method.card for step in steps]
        return cls(
            frozenset(need for card in cards for need in card.needs) & {"attention", "keys"},
            any(card.features == "before" for card in cards),
            " > ".join(str(step) for step in steps if step.stage == "input"),
        )

    def serves(self, other: Wanted) -> bool:
        """Whether what was collected for this is enough for the other."""
        return self.needs >= other.needs and self.before >= other.before and self.smaller == other.smaller


@dataclass
class Encoded:
    """What travels with one encoder output.

    Attributes:
        wanted: what was collected.
        layouts: one per unit, in placeholder order.
        rows: the features as they left the encoder, in pieces whose borders are borders of units, too.
        planes: deep-stack features, (all rows, d) each.
        extras: name -> one :class:`Extra` per unit, aligned with the unit's tokens.
        before: (tokens, d) features of each unit before the connector, where a step asked for them.
    """

    wanted: Wanted
    layouts: list[Layout]
    rows: list[Tensor]
    planes: list[Tensor]
    extras: dict[str, list[Extra]] = field(default_factory=dict)
    before: list[Tensor] | None = None


def encoded_of(output: Any, plan: Plan) -> Encoded | None:
    """What :func:`watch` put on an encoder output, if it serves the plan: it may have been made for another one."""
    encoded = getattr(output, CARRIED, None)
    return encoded if encoded is not None and encoded.wanted.serves(Wanted.by(plan)) else None


def watch(family: Family, plan: Plan, undo: list[Callable[[], None]]) -> None:
    """Wrap the encoder of ``family`` for ``plan``. What undoes it is added to ``undo`` step by step.

    Raises:
        UnsupportedError: if the tower cannot give what the plan needs.
    """
    steps = [step for step in plan.steps if step.keep is None or not step.keep.is_all]
    wanted = Wanted.by(plan)
    needs, want_before = wanted.needs, family.rowwise is not None and wanted.before
    resize = next((s for s in steps if s.stage == "input"), None)
    if resize is not None:
        if not family.resizable:
            fault = family.one_size()
            raise UnsupportedError(fault.what, where=f"method {resize.method.name}, {fault.where}", hint=fault.hint)
        if needs or sum(s.stage == "input" for s in steps) > 1:
            raise UnsupportedError(
                f"what is read in the tower belongs to the smaller picture, which {plan} cannot look up later",
                where=f"method {resize.method.name}, stage input",
                hint="one step on the input, followed by methods that need no tower attention and no keys",
            )
    core, original = family.core, family.core.get_image_features
    shelf = threading.local()  # what the tapped modules see during one call, per thread

    if needs:
        row = family.cls_row()
        layer = family.score_layer()
        domain = "mean over the tower's tokens" if row is None else "CLS row over the tower's tokens"

        def read(module, query, key, mask, kwargs):
            seen = getattr(shelf, "seen", None)
            if seen is None:
                return
            if "attention" in needs:
                scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
                if row is None:
                    # Flash kernels get all pictures in one call, and where each begins instead of a mask.
                    borders = kwargs.get("cu_seq_lens_q")
                    parts = [slice(None)] if borders is None else [slice(*p) for p in pairwise(borders.tolist())]
                    each = [tap.received(query[:, :, part], key[:, :, part], scale, mask) for part in parts]
                    scores = torch.cat(each, -1)  # (b, h, n)
                else:
                    one = row % query.shape[2]
                    cut = None if mask is None else mask[:, :, one : one + 1]
                    scores = tap.rows(query[:, :, one : one + 1], key, scale, cut)[:, :, 0]
                seen["attention"].append(_without(scores.mT, row))
            if "keys" in needs:
                seen["keys"].append(_without(key.float().mean(1), row))

        undo.append(tap.tap(family.score_attention(), read))

    if want_before:
        connector = core.get_submodule(family.rowwise)

        def keep_input(module, args):
            if getattr(shelf, "seen", None) is not None:
                shelf.seen["before"].append(args[0])

        undo.append(connector.register_forward_pre_hook(keep_input).remove)

    @functools.wraps(original)
    def encode(*args, **kwargs):
        bound = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        arguments = {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}
        if arguments.get("return_dict") is False:
            return original(*args, **kwargs)
        outer = getattr(shelf, "seen", None)
        shelf.seen = {"attention": [], "keys": [], "before": []}
        try:
            if resize is None:
                output = original(**arguments | {"return_dict": True})
                layouts = family.layouts(arguments, output)
            else:
                from .input import encode_smaller

                output, layouts = encode_smaller(family, resize, original, arguments)
            seen = shelf.seen
        finally:
            shelf.seen = outer
        encoded = Encoded(wanted, layouts, family.rows(output), family.planes(output))
        for name in needs if resize is None else ():
            values = family.per_unit(seen[name], layouts, arguments)
            origin, at = (domain, layer) if name == "attention" else ("", layer)
            encoded.extras[name] = [
                Extra(_to_tokens(name, value, one), at, origin) for value, one in zip(values, layouts, strict=True)
            ]
        # Where tower tokens were mixed after the connector there is no single row before it for each token.
        if want_before and resize is None and all(one.source.shape[1] == 1 for one in layouts):
            rows = family.per_unit(seen["before"], layouts, arguments)
            sources = [one.source[:, 0].to(value.device).clamp(min=0) for value, one in zip(rows, layouts, strict=True)]
            encoded.before = [value[source] for value, source in zip(rows, sources, strict=True)]
        setattr(output, CARRIED, encoded)
        return output

    shadowed = core.__dict__.get("get_image_features")  # somebody else's wrapper, which comes back with the undo
    core.get_image_features = encode

    def unwrap() -> None:
        if shadowed is None:
            core.__dict__.pop("get_image_features", None)
        else:
            core.get_image_features = shadowed

    undo.append(unwrap)


def _without(x: Tensor, row: int | None) -> Tensor:
    """Leave the CLS token, if there is one, out of (b, tokens, ...)."""
    if row is None:
        return x
    row %= x.shape[1]
    return torch.cat([x[:, :row], x[:, row + 1 :]], dim=1)


def _to_tokens(name: str, value: Tensor, layout: Layout) -> Tensor:
    """From tower tokens (p, ...) to the unit's tokens: attention adds up over the patches a token joins, keys average."""
    source = layout.source.to(value.device)
    there = (source >= 0)[..., None].to(value.dtype)
    gathered = value[source.clamp(min=0)] * there  # (n, s, ...)
    total = gathered.sum(1)
    if name == "attention":
        return total.mT  # (h, n)
    return total / there.sum(1).clamp(min=1)
