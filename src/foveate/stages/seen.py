"""Queries, keys and values of one decoder layer, as its kernel got them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import tap


@dataclass
class Seen:
    """What a tap saw in a decoder layer.

    Attributes:
        layer: which one.
        query: (b, heads, m, c) of the slots that run.
        key, value: (b, key heads, s, c) of what was stored before and of these slots, last.
        mask: as the kernel got it.
        scale: factor on the logits.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    @property
    def first(self) -> int:
        """Where the call's own keys begin."""
        return self.key.shape[2] - self.query.shape[2]

    def rows(self, row: int, asks: Tensor, slots: Tensor) -> Tensor:
        """(heads, q, n) attention of some slots (q,) of a row to others (n,), softmax over all that they see.

        Slots are counted from the call's first; attention to slot -1 is 0.
        """
        key, total, mask = self.key[row : row + 1], self.key.shape[2], self.mask
        if mask is None or mask.ndim == 2:
            visible = torch.arange(total, device=key.device) <= self.first + asks[:, None]
            if mask is not None:
                visible = visible & mask[row, -total:].bool()
            mask = visible[None, None]
        else:
            mask = mask[row if len(mask) > 1 else 0, :, :, -total:][None][:, :, asks]
        weights = tap.rows(self.query[row : row + 1][:, :, asks], key, self.scale, mask)[0]
        return weights[..., self.first + slots.clamp(min=0)] * (slots >= 0)
