"""Synthetic views that carry every extra a card can ask for."""

from __future__ import annotations

from dataclasses import replace

import torch

from foveate.method import BEFORE, BETWEEN, Method
from foveate.tokens import Extra, View

WIDTH, HEADS, KEY_WIDTH, WORDS = 16, 4, 8, 5
GRIDS = {
    "square": [(6, 6)],
    "wide": [(3, 7)],
    "column": [(11, 1)],
    "tiles": [(4, 4), (4, 6), (2, 3)],
}
GAPS = ("gaps",)  # tokens missing from the grids: padding cut off, or dropped by an earlier step
BARE = ("bare",)  # no places at all: features and a budget
SHAPES = (*GRIDS, *GAPS, *BARE)


def view(shape: str = "square", k: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> View:
    """A view of random features and extras.

    Args:
        shape: one of SHAPES.
        k: content tokens to keep; a third when None.
        dtype: of features and extras.
        seed: of everything random.
    """
    draw = torch.Generator().manual_seed(seed)
    grids = GRIDS.get(shape, [(5, 6), (4, 4)])
    places = [(i, r, c) for i, (height, width) in enumerate(grids) for r in range(height) for c in range(width)]
    if shape in GAPS:  # a row of padding, a column of padding, and holes
        places = [p for p in places if p[:2] != (0, 0) and p[::2] != (1, 3) and (7 * p[1] + 3 * p[2]) % 4]
    n = len(places)
    k = max(1, n // 3) if k is None else k
    tile, row, col = torch.tensor(places).T
    x = torch.randn(n, WIDTH, generator=draw)
    extras = {
        "attention": Extra(torch.randn(HEADS, n, generator=draw).softmax(-1), 0, "CLS row over the tower's tokens"),
        "early": Extra(torch.randn(HEADS, n, generator=draw).softmax(-1), 0, "CLS row over the tower's tokens"),
        "keys": Extra(torch.randn(n, KEY_WIDTH, generator=draw)),
        "question": Extra(torch.randn(WORDS, WIDTH, generator=draw)),
        "values": Extra(torch.randn(n, KEY_WIDTH, generator=draw)),
        "value_attention": Extra(
            torch.randn(HEADS, n, generator=draw).softmax(-1), 0, "CLS row over the tower's tokens"
        ),
        "pixels": Extra(torch.randn(n, 3 * 4, generator=draw)),
        "vocabulary": Extra(torch.randn(50, WIDTH, generator=draw)),
        "first": Extra(torch.randn(n, WIDTH, generator=draw)),
        "first_text": Extra(torch.randn(WORDS, WIDTH, generator=draw)),
        "last_row": Extra(torch.randn(HEADS, n, generator=draw).softmax(-1), 0, "last prompt token"),
        "ahead_row": Extra(torch.randn(HEADS, n, generator=draw).softmax(-1), 1, "last prompt token"),
        "text_rows": Extra(torch.randn(HEADS, WORDS, n, generator=draw).softmax(-1), 0, "text after the image"),
        "text_text": Extra(torch.randn(HEADS, WORDS, WORDS, generator=draw).softmax(-1), 0, "text after the image"),
        "text": Extra(torch.randn(WORDS, WIDTH, generator=draw)),
        "layer_keys": Extra(torch.randn(n, 2 * KEY_WIDTH, generator=draw)),
        "text_keys": Extra(torch.randn(WORDS, 2 * KEY_WIDTH, generator=draw)),
    }
    assert set(extras) == {*BEFORE, *BETWEEN}, "a new need: give the views one"
    extras = {name: replace(extra, value=extra.value.to(dtype)) for name, extra in extras.items()}
    if shape in BARE:
        return View(x.to(dtype), k, extras=extras)
    return View(x.to(dtype), k, tile=tile, row=row, col=col, extras=extras, layer=2, depth=4)


NEEDS = (*BEFORE, *BETWEEN)


def size(shape: str) -> int:
    """Tokens of a shape."""
    return view(shape).n


def shapes(method: type[Method]) -> tuple[str, ...]:
    """The shapes a method meets: a step on the input sees one full grid, because nothing ran before it."""
    if method.card.stages == ("input",):
        return tuple(name for name, grids in GRIDS.items() if len(grids) == 1)
    return SHAPES


def over(one: View, **values: torch.Tensor) -> View:
    """A view with other features (``x=``) or extras (by name)."""
    extras = {name: replace(e, value=values.get(name, e.value)) for name, e in one.extras.items()}
    return replace(one, x=values.get("x", one.x), extras=extras)


def inputs(one: View) -> dict[str, torch.Tensor]:
    """Everything in a view that holds values a method may look at."""
    return {"x": one.x, **{name: extra.value for name, extra in one.extras.items()}}


def facts(one: View) -> dict[str, torch.Tensor]:
    """All tensors of a view."""
    places = {name: getattr(one, name) for name in ("kind", "tile", "t", "row", "col", "size")}
    return inputs(one) | places
