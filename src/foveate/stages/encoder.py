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
from typing import Any

import torch
from torch import Tensor

from ..families import Family, Layout
from ..plan import Plan
from ..tokens import Extra
from . import tap

CARRIED = "_foveate_encoded"


@dataclass
class Encoded:
    """What travels with one encoder output.

    Attributes:
        layouts: one per unit, in placeholder order.
        extras: name -> one :class:`Extra` per unit, aligned with the unit's tokens.
        before: (tokens, d) features of each unit before the connector, where a step asked for them.
    """

    layouts: list[Layout]
    extras: dict[str, list[Extra]] = field(default_factory=dict)
    before: list[Tensor] | None = None


def encoded_of(output: Any) -> Encoded | None:
    """What :func:`watch` put on an encoder output."""
    return getattr(output, CARRIED, None)


def watch(family: Family, plan: Plan) -> list[Callable[[], None]]:
    """Wrap the encoder of ``family`` for ``plan``.

    Returns:
        Functions that undo it.
    """
    needs = {need for step in plan.steps for need in step.method.card.needs} & {"attention", "keys"}
    want_before = family.rowwise is not None and any(s.method.card.features == "before" for s in plan.steps)
    resize = next((s for s in plan.steps if s.stage == "input"), None)
    core, original = family.core, family.core.get_image_features
    shelf = threading.local()  # what the tapped modules see during one call, per thread
    undo: list[Callable[[], None]] = []

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
                    scores = tap.received(query, key, scale, mask)  # (b, h, n)
                else:
                    cut = None if mask is None else mask[:, :, row : row + 1]
                    scores = tap.rows(query[:, :, row : row + 1], key, scale, cut)[:, :, 0]
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
        encoded = Encoded(layouts)
        for name in needs if resize is None else ():
            values = family.per_unit(seen[name], layouts, arguments)
            origin, at = (domain, layer) if name == "attention" else ("", layer)
            encoded.extras[name] = [
                Extra(_to_tokens(name, value, one), at, origin) for value, one in zip(values, layouts, strict=True)
            ]
        if want_before and resize is None:
            rows = family.per_unit(seen["before"], layouts, arguments)
            encoded.before = [value[one.source[:, 0].to(value.device).clamp(min=0)] for value, one in zip(rows, layouts, strict=True)]
        setattr(output, CARRIED, encoded)
        return output

    core.get_image_features = encode
    undo.append(lambda: core.__dict__.pop("get_image_features", None))
    return undo


def _without(x: Tensor, row: int | None) -> Tensor:
    """Leave the CLS token out of (b, tokens, ...)."""
    if row is None:
        return x
    return torch.cat([x[:, :row], x[:, row + 1 :]], dim=1) if row else x[:, 1:]


def _to_tokens(name: str, value: Tensor, layout: Layout) -> Tensor:
    """From tower tokens (p, ...) to the unit's tokens: attention adds up over the patches a token joins, keys average."""
    source = layout.source.to(value.device)
    there = (source >= 0)[..., None].to(value.dtype)
    gathered = value[source.clamp(min=0)] * there  # (n, s, ...)
    total = gathered.sum(1)
    if name == "attention":
        return total.mT  # (h, n)
    return total / there.sum(1).clamp(min=1)
