"""The arguments of a decoder layer, fitted to the columns that run in it and to those that its cache holds.

The model works them out once, for all columns. A layer in which some do not run gets rows of its tables and masks.
Masks are gathered, never made anew where there is one: so windows, chunks and pictures that are read in both directions
stay what they are, whatever the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError

KERNELS = ("sdpa", "eager")  # and those whose name says flash


@dataclass(frozen=True)
class Keys:
    """The columns that a layer's queries see.

    Attributes:
        number: (b, s) base column of each slot, those of the call last.
        alive: (b, s) False for slots that hold nothing to be seen.
        all_alive: whether none is dead, as a Python bool.
        fresh: how many of them the call adds.
        total: base columns, those of the call included.
        window: tokens that a query sees at most, itself included, where the layer's cache keeps more; 0: no such limit.
        chunked: the window does not slide: a query sees back to the last multiple of it.
    """

    number: Tensor
    alive: Tensor
    all_alive: bool
    fresh: int
    total: int
    window: int = 0
    chunked: bool = False


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (..., b or 1, L, d). index: (b, m); gives (..., b, m, d)."""
    index = index.to(x.device)
    if len(index) == 1:
        return x.index_select(-2, index[0])
    lead = x.shape[:-3]
    x = x.expand(*lead, len(index), *x.shape[-2:])
    return x.gather(-2, index[..., None].expand(*lead, *index.shape, x.shape[-1]))


def table_for(value: Any, index: Tensor) -> Any:
    """Rotary tables of some rows: sines and cosines side by side, or complex numbers."""
    if isinstance(value, (tuple, list)):
        return type(value)(rows_of(one, index) for one in value)
    return rows_of(value, index)


def mask_for(mask: Any, kernel: str, index: Tensor | None, keys: Keys, dtype: torch.dtype, where: str) -> Any:
    """The mask for queries ``index`` over ``keys``.

    Args:
        mask: as the model made it: None, (b, base columns), or (b or 1, heads or 1, fresh columns, base columns), whose last
            base columns may be all it covers.
        kernel: name of the attention function.
        index: (b, m) columns of the call that run, or None: all.
        keys: what they see.
        dtype: of the states, for masks that are added.
        where: for errors.

    Raises:
        UnsupportedError: a kind of mask that cannot be gathered.
    """
    flash = "flash" in kernel
    if (not flash and kernel not in KERNELS) or (mask is not None and not isinstance(mask, Tensor)):
        raise UnsupportedError(
            f"attention by {kernel!r} takes masks that cannot be cut",
            where=where,
            hint='attn_implementation="sdpa", or a method before the language model',
        )
    queries = keys.fresh if index is None else index.shape[1]
    if mask is None:
        alone = keys.number.shape[1] == queries or queries == 1  # the kernel's own causality is right
        if keys.all_alive and not keys.window and (alone or flash):
            return None
        if flash:
            return keys.alive.long()
        seen = _seen(index, keys)
        return seen if kernel != "eager" else _added(seen, dtype)
    if mask.ndim == 2:
        column = keys.number - (keys.total - mask.shape[1])
        return mask.gather(1, column.clamp(min=0)) * (keys.alive & (column >= 0)).to(mask.dtype)
    column = keys.number - (keys.total - mask.shape[-1])
    if index is not None:
        mask = (
            rows_of(mask, index[:, None].expand(-1, mask.shape[1], -1).flatten(0, 1))
            if len(index) == 1
            else mask.expand(len(index), *mask.shape[1:]).gather(
                2, index[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
            )
        )
    rows = max(len(mask), len(column))
    gather = column.clamp(min=0)[:, None, None].expand(rows, mask.shape[1], queries, -1)
    mask = mask.expand(rows, *mask.shape[1:]).gather(-1, gather)
    seen = (keys.alive & (column >= 0))[:, None, None]
    if mask.dtype == torch.bool:
        mask = mask & seen
        return mask | ~mask.any(-1, keepdim=True)  # a query that sees nothing would make NaN; nobody sees it
    least = torch.finfo(mask.dtype).min
    return mask.masked_fill(~seen, least)


def _seen(index: Tensor | None, keys: Keys) -> Tensor:
    """(b, 1, q, s) bool: causal by base columns."""
    start = keys.total - keys.fresh
    if index is None:
        asks = torch.arange(start, keys.total, device=keys.number.device).expand(len(keys.number), -1)
    else:
        asks = index + start
    mine, other = asks[:, None, :, None], keys.number[:, None, None]
    seen = (other <= mine) & keys.alive[:, None, None]
    if keys.window:
        seen = seen & (other >= mine // keys.window * keys.window if keys.chunked else other > mine - keys.window)
    return seen | ~seen.any(-1, keepdim=True)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
