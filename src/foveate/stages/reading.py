"""What methods look at inside an attention module of the tower: rows of its attention, keys, values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from . import tap
from .alive import Alive

SUMMED = ("attention", "early", "value_attention")  # over what a token joins; the others are averaged
READ = {"attention", "keys", "values", "value_attention"}


@dataclass
class Read:
    """One thing that was read in one block, call by call.

    Attributes:
        pieces: (b, tokens, ...) of each call; where rows of the tower are gone, (tokens, ...).
        alive: which rows were left, or None if all.
    """

    pieces: list[Tensor] = field(default_factory=list)
    alive: Alive | None = None

    def whole(self, name: str, row: int | None) -> list[Tensor]:
        """(b, tokens without CLS, ...) of each call, as if no row were gone.

        Tokens that are gone have no attention of their own, and the keys of what they went into: so that summing the one
        and averaging the other over what was merged is right, wherever on the way it was read.
        """
        pieces = self.pieces
        if self.alive is not None:
            pieces = [self.alive.back(torch.cat(pieces), name not in SUMMED)]
        return [without(piece, row) for piece in pieces]


def read(
    needs: Collection[str],
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict,
    row: int | None,
    alive: Alive | None,
) -> dict[str, Tensor]:
    """What is needed of one attention call, CLS token included: (b, tokens, ...), or (tokens, ...) of ``alive`` rows.

    Args:
        needs: names among :data:`READ`.
        query, key, mask, kwargs: see :func:`tap.tap`.
        row: of the CLS token, or None: then attention is what a token receives on average.
        alive: the rows of the tower that are left, or None if all.
    """
    value, scale = kwargs["value"], kwargs.get("scaling") or query.shape[-1] ** -0.5
    # Flash kernels get all pictures in one call, and where each begins instead of a mask.
    borders = kwargs.get("cu_seq_lens_q")
    parts = [(slice(None), slice(None))]
    if alive is not None and alive.ragged:
        parts = [(slice(i, i + 1), slice(0, count)) for i, count in enumerate(alive.counts)]
    elif borders is None and "value_attention" in needs and row is None and mask is not None and mask.shape[2] > 1:
        first = (mask if mask.dtype == torch.bool else mask > -1e4)[0, 0].int().argmax(-1)  # a picture begins there
        borders = torch.cat([first.unique(), first.new_tensor([len(first)])])
    if borders is not None:
        parts = [(slice(None), slice(*pair)) for pair in pairwise(borders.tolist())]
    found: dict[str, list[Tensor]] = {name: [] for name in needs}
    for samples, tokens in parts:
        q, k, v = (x[samples, :, tokens] for x in (query, key, value))
        cut = None if mask is None else mask[samples if len(mask) > 1 else slice(None)][..., tokens]
        if cut is not None and cut.shape[2] > 1:
            cut = cut[:, :, tokens]
        for name in needs:
            if name == "attention":
                one = _attention(q, k, scale, cut, row)
            elif name == "value_attention":
                # One value vector asks which others resemble it: that of the CLS token, or the mean.
                asks = v.mean(2, keepdim=True) if row is None else v[:, :, row % v.shape[2]][:, :, None]
                one = tap.rows(asks, v, 1.0, None if cut is None or cut.shape[2] > 1 else cut)[:, :, 0].mT
            else:
                one = (k if name == "keys" else v).float().mean(1)
            found[name].append(one)
    if alive is not None:
        return {name: torch.cat([one.flatten(0, 1) for one in ones]) for name, ones in found.items()}
    return {name: torch.cat(ones, 1) for name, ones in found.items()}


def _attention(query: Tensor, key: Tensor, scale: float, mask: Tensor | None, row: int | None) -> Tensor:
    """(b, tokens, heads)"""
    if row is None:
        return tap.received(query, key, scale, mask).mT
    one = slice(row % query.shape[2], row % query.shape[2] + 1)
    if mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, one]
    return tap.rows(query[:, :, one], key, scale, mask)[:, :, 0].mT


def without(x: Tensor, row: int | None) -> Tensor:
    """Leave the CLS token, if there is one, out of (b, tokens, ...)."""
    if row is None:
        return x
    row %= x.shape[1]
    return torch.cat([x[:, :row], x[:, row + 1 :]], dim=1)
