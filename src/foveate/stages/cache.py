"""The key/value cache of a shortened prompt, and what later calls have to know about it.

After the prompt was shortened the cache stores fewer tokens than the caller's ids and masks count. A layer that reports
its *logical* length, and an offset for its first stored column, lets everything else stay stock: causal masks, padding
masks, ``generate`` on a returned cache, positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as memo
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError

MEMORY = "_foveate_memory"  # attribute of a cache object


@dataclass
class Memory:
    """What a cache must remember of the prompts that were shortened into it. It lives and dies with the cache.

    Attributes:
        removed: columns that the caller counts and the cache does not hold.
        alive: (b, stored) False for stored columns that are padding, up to the last shortened prompt.
        back: how far later positions move back, (b, 1) or (axes, b, 1), when kept tokens were renumbered; else None.
        needs_run: True if the stock model alone would decode wrongly, because its masks or positions do not fit.
        prepared: True while a call is under way whose masks and positions a run has fitted.
    """

    removed: int
    alive: Tensor
    back: Tensor | None
    needs_run: bool
    prepared: bool = True

    def mask(self, given: Tensor | None, stored: int, fresh: int) -> Tensor | None:
        """The 2D mask for a later call, or None if it may attend to all that is stored.

        Args:
            given: (b, columns the caller counts) the caller's mask, or None.
            stored: columns the cache holds before the call.
            fresh: columns the call adds.
        """
        alive = self.columns(given, stored, fresh)
        if given is None and not self.needs_run:
            return None
        gap = torch.zeros(len(alive), self.removed, dtype=torch.bool, device=alive.device)
        return torch.cat([gap, alive], dim=1).long()

    def columns(self, given: Tensor | None, stored: int, fresh: int) -> Tensor:
        """(b, stored + fresh) which columns are not padding."""
        later = stored + fresh - self.alive.shape[1]
        if given is None:
            tail = torch.ones(len(self.alive), later, dtype=torch.bool, device=self.alive.device)
        else:
            tail = given[:, given.shape[1] - later :].bool()
        alive = self.alive.to(tail.device)
        if len(alive) != len(tail):  # several returns or beams made from a cache that was expanded
            alive = alive.repeat_interleave(len(tail) // len(alive), 0)
        return torch.cat([alive, tail], dim=1)


def memory_of(cache: object) -> Memory | None:
    """The memory on a cache object, if a prompt was shortened into it."""
    return getattr(cache, MEMORY, None)


@memo
def _logical(base: type) -> type:
    """A cache layer class that stores less than it counts. ``removed`` is set on the instance."""

    class Logical(base):  # type: ignore[valid-type, misc]
        removed = 0
        memory: Memory | None = None

        def get_seq_length(self) -> int:
            return super().get_seq_length() + self.removed

        def get_mask_sizes(self, query_length):
            if self.memory is not None and self.memory.needs_run and not self.memory.prepared:
                raise UnsupportedError(
                    "this cache holds a shortened prompt whose masks or positions only a run can supply, and none is attached",
                    where="continuing on past_key_values",
                    hint='attach again before continuing, or compress unpadded prompts with positions="original"',
                )
            physical = self.removed
            self.removed = 0  # the base class must reckon with what it stores
            try:
                length, offset = super().get_mask_sizes(query_length)
            finally:
                self.removed = physical
            return length, offset + physical

        def crop(self, tokens_to_remove: int) -> None:
            physical = self.removed
            self.removed = 0
            try:
                super().crop(tokens_to_remove)
            finally:
                self.removed = physical

        def reset(self) -> None:
            super().reset()
            self.removed = 0

    Logical.__name__ = Logical.__qualname__ = f"Logical{base.__name__}"
    return Logical


def check_supported(cache: Any) -> None:
    """Refuse caches whose layers cannot hold fewer tokens than they count.

    Raises:
        UnsupportedError: static, quantized, offloaded or recurrent caches.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    for layer in getattr(cache, "layers", []):
        base = type(layer).__mro__[1] if hasattr(type(layer), "removed") else type(layer)
        if base not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedError(
                f"a cache with {type(layer).__name__} cannot hold a shortened prompt",
                where="stage connector",
                hint='the default cache (no cache_implementation), or remove the run for this call',
            )
    if getattr(cache, "offloading", False):
        raise UnsupportedError("an offloaded cache cannot hold a shortened prompt", hint="the default cache")


def remember(cache: Any, removed: int, alive: Tensor, back: Tensor | None, needs_run: bool) -> None:
    """Write into the cache that the call which just ended left out ``removed`` columns.

    Args:
        cache: after the call.
        removed: columns left out by this call.
        alive: (b, stored) all columns the cache now holds, False for padding.
        back: how far positions moved back in this call, or None.
        needs_run: whether anything stored is hidden or renumbered.
    """
    memory = memory_of(cache)
    if memory is None:
        memory = Memory(0, alive, None, False)
        setattr(cache, MEMORY, memory)
    memory.removed += removed
    memory.alive = alive
    if back is not None:
        memory.back = back if memory.back is None else memory.back + back
    memory.needs_run = memory.needs_run or needs_run
    for layer in cache.layers:
        if not hasattr(type(layer), "removed"):
            layer.__class__ = _logical(type(layer))
        layer.removed += removed
        layer.memory = memory


def stored_columns(cache: Any) -> int:
    """Columns the first layer holds, as opposed to those it counts."""
    memory = memory_of(cache)
    return int(cache.get_seq_length()) - (memory.removed if memory else 0)
