"""One routine that lets everything aligned with the sequence follow a reduction.

Features and deep-stack planes go by weight (:meth:`foveate.tokens.Reduction.apply`); ids, positions, masks, labels and
token types go by anchor, here. Rows of a batch may lose different numbers of tokens: the shorter ones get dead slots on
the side where the batch was padded, hidden by the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # label that the loss skips
FOLLOWERS = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


@dataclass(frozen=True)
class Cut:
    """What remains of a batch of sequences.

    Attributes:
        index: (b, L') old column of every slot; dead slots point anywhere.
        alive: (b, L') False for dead slots.
        length: L, columns before.
        all_alive: whether no slot is dead (a Python bool, so that nobody has to ask the device again).
    """

    index: Tensor
    alive: Tensor
    length: int
    all_alive: bool

    @property
    def removed(self) -> int:
        """Columns by which the batch became shorter."""
        return self.length - self.index.shape[1]

    @classmethod
    def keeping(cls, keep: Tensor, counts: list[int], right: bool = False) -> Cut:
        """Keep the columns where ``keep`` (b, L) is True, in order, and no more dead slots than equal rows need.

        Args:
            keep: (b, L).
            counts: how many each row keeps.
            right: dead slots go right, not left.
        """
        width = max(counts)
        order = keep.long().argsort(dim=1, stable=True, descending=right)
        index = order[:, :width] if right else order[:, keep.shape[1] - width :]
        return cls(index, keep.gather(1, index), keep.shape[1], min(counts) == width)

    @classmethod
    def nothing(cls, valid: Tensor, all_alive: bool) -> Cut:
        """Every column stays, padding included. valid: (b, L)."""
        index = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        return cls(index, valid, valid.shape[1], all_alive)

    def take(self, x: Tensor) -> Tensor:
        """Columns of (b or 1, L) or (axes, b or 1, L)."""
        index = self.index if x.ndim == 2 else self.index.expand(x.shape[0], -1, -1)
        return x.expand(*x.shape[:-2], len(self.index), -1).gather(-1, index.to(x.device))

    def slots(self) -> Tensor:
        """(b, L) slot of every old column, -1 for those that are gone."""
        slot = torch.arange(self.index.shape[1], device=self.index.device).expand_as(self.index)
        gone = self.index.new_full((len(self.index), self.length), -1)
        return gone.scatter(1, self.index, torch.where(self.alive, slot, -1))

    def rows(self, x: Tensor) -> Tensor:
        """Rows (b, L') of states (b, L, d)."""
        index = self.index.to(x.device)
        if len(index) == 1:
            return x.index_select(1, index[0])
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

    def back(self, states: Tensor, x: Tensor) -> Tensor:
        """A copy of x (b, L, d) with the rows (b, L', d) at their places; dead slots have none."""
        index = self.index.to(x.device)
        if not self.all_alive:
            states = torch.where(self.alive.to(x.device)[..., None], states, self.rows(x))
        if len(index) == 1:
            return x.index_copy(1, index[0], states)
        return x.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), states)


def shorten(kwargs: dict[str, Any], cut: Cut, dropped: Tensor, positions: Tensor, pad: int) -> dict[str, Any]:
    """Cut everything in a forward call's keyword arguments that is aligned with its sequence.

    Args:
        kwargs: of the model's forward; not modified.
        cut: what remains.
        dropped: (b, L) columns that went and were not padding.
        positions: (b, L) or (axes, b, L) position ids before the cut.
        pad: token id for dead slots.

    Returns:
        The new keyword arguments, without attention_mask.
    """
    new = dict(kwargs)
    new["input_ids"] = cut.take(kwargs["input_ids"]).masked_fill(~cut.alive, pad)
    new["position_ids"] = cut.take(positions)
    for name, (earlier, types) in token_types(kwargs).items():
        new[name] = torch.cat([earlier, cut.take(types)], dim=-1)
    if isinstance(labels := kwargs.get("labels"), Tensor):
        # A label is predicted from the column before it. Where that one was dropped, another token would be asked to
        # predict it; such labels do not count.
        orphan = torch.nn.functional.pad(dropped[:, :-1], (1, 0)).to(labels.device)
        new["labels"] = cut.take(labels.masked_fill(orphan, IGNORED)).masked_fill(~cut.alive.to(labels.device), IGNORED)
    return new


def token_types(kwargs: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Token types by name, (b, earlier columns) and (b, L) of this call.

    Some versions and models hand over those of the whole conversation; for the draft of assisted decoding, which is
    text, there may be none.
    """
    length, found = kwargs["input_ids"].shape[1], {}
    for name in FOLLOWERS:
        if isinstance(value := kwargs.get(name), Tensor):
            earlier = max(0, value.shape[-1] - length)
            missing = length - (value.shape[-1] - earlier)
            found[name] = value[..., :earlier], torch.nn.functional.pad(value[..., earlier:], (0, missing))
    return found


def recount(positions: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Number kept tokens anew from each row's first position: 0, 1, 2, ... on every axis.

    Args:
        positions: (b, L') or (axes, b, L') original positions of the kept tokens.
        alive: (b, L').

    Returns:
        The new positions, and how far later tokens have to move back: (b, 1) or (axes, b, 1).
    """
    count = alive.long().cumsum(-1) - 1
    far = torch.iinfo(positions.dtype).max
    first = positions.masked_fill(~alive, far).amin(-1, keepdim=True)
    new = (first + count).masked_fill(~alive, 0)
    last = positions.masked_fill(~alive, -1).amax(-1, keepdim=True)
    return new, last - new.amax(-1, keepdim=True)
