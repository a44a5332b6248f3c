"""Reduction of the picture itself: the tower sees a smaller one and gives fewer tokens.

The prompt was written for the full number, and ``generate`` matches features to placeholders before anything can be
shortened. So the encoder hands over as many rows as the prompt expects, the real ones in the top left of the grid; the
connector stage then takes exactly those (:class:`foveate.methods.resize.Resize`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..budget import Budget
from ..errors import UnsupportedError
from ..families import Family, Layout
from ..plan import Step


def encode_smaller(
    family: Family, step: Step, encode: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[Any, list[Layout]]:
    """Encode smaller copies of the pictures, and spread the rows over full grids.

    Args:
        family: of the model.
        step: the step with the budget; its method's ``grid(height, width, k)`` chooses the size.
        encode: the model's ``get_image_features``.
        arguments: for it.

    Returns:
        The encoder's output with full-length features, and the full layouts.
    """
    budget = step.keep
    assert isinstance(budget, Budget)
    if budget.unit == "total":
        raise UnsupportedError(
            f"keep={budget} needs all pictures of a sample, the encoder sees them one by one",
            where=f"method {step.method.name}, stage input",
            hint="a share, or tokens per image",
        )
    full = family.full_layouts(arguments)
    sizes = []
    for layout in full:
        (height, width), *more = layout.grids
        if more:
            raise UnsupportedError(
                "a picture in tiles cannot be made smaller tile by tile",
                where=f"method {step.method.name}, family {family.name}",
                hint="pool, or fewer tiles in the processor",
            )
        k = budget.counts([layout.n])[0]
        sizes.append(step.method.grid(height, width, k))  # type: ignore[attr-defined]
    if all(size == layout.grids[0] for size, layout in zip(sizes, full, strict=True)):
        return encode(**arguments | {"return_dict": True}), full
    output = encode(**family.shrunk(arguments, sizes) | {"return_dict": True})
    planes = [list(p.split([h * w for h, w in sizes])) for p in family.planes(output)]
    features = []
    for i, (rows, (h, w), layout) in enumerate(zip(family.rows(output), sizes, full, strict=True)):
        if len(rows) != h * w:
            raise UnsupportedError(
                f"the tower made {len(rows)} tokens of a picture that should give {h} x {w}",
                where=f"method {step.method.name}, family {family.name}",
            )
        features.append(_spread(rows, h, w, layout))
        for plane in planes:
            plane[i] = _spread(plane[i], h, w, layout)
    return family.replaced(output, features, [torch.cat(p) for p in planes], equal=True), full


def _spread(rows: torch.Tensor, height: int, width: int, layout: Layout) -> torch.Tensor:
    """Rows of a small grid in the top left of the full one, zeros elsewhere."""
    full_h, full_w = layout.grids[0]
    new = rows.new_zeros(full_h, full_w, rows.shape[-1])
    new[:height, :width] = rows.view(height, width, -1)
    return new.view(full_h * full_w, -1)
