"""The key/value cache of a shortened prompt, and what later calls have to know about it.

After the prompt was shortened the cache stores fewer tokens than the caller's ids and masks count. A layer that reports
its *logical* length, and an offset for its first stored column, lets everything else stay stock: causal masks, padding
masks, ``generate`` on a returned cache, positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    back: Tensor | None = None
    needs_run: bool = False
    prepared: bool = False

    def mask(self, given: Tensor | None, stored: int, fresh: int) -> Tensor:
        """(b, removed + stored + fresh) the 2D mask for a later call.

        Args:
            given: (b, columns the caller counts) the caller's mask, or None.
            stored: columns the cache holds before the call.
            fresh: columns the call adds.
        """
        alive = self.columns(given, stored, fresh)
        return torch.cat([alive.new_zeros(len(alive), self.removed), alive], dim=1).long()

    def columns(self, given: Tensor | None, stored: int, fresh: int) -> Tensor:
        """(b, stored + fresh) which columns are not padding."""
        later = stored + fresh - self.alive.shape[1]
        if given is None:
            tail = self.alive.new_ones(len(self.alive), later)
        else:
            tail = given[:, given.shape[1] - later :].bool().to(self.alive.device)
        if len(self.alive) != len(tail):
            raise UnsupportedError(
                f"the call has {len(tail)} rows, its cache was filled with {len(self.alive)}",
                where="continuing on past_key_values",
                hint="cache.batch_repeat_interleave or batch_select_indices, so that the cache knows",
            )
        return torch.cat([self.alive, tail], dim=1)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let what is kept per batch row follow the cache. change: from (b, ...) to (b', ...)."""
        self.alive = change(self.alive)
        if self.back is not None:
            self.back = change(self.back.movedim(-2, 0)).movedim(0, -2)


def memory_of(cache: object) -> Memory | None:
    """The memory on a cache object, if a prompt was shortened into it."""
    return getattr(cache, MEMORY, None)


@memo
def _logical(base: Any) -> Any:
    """A cache layer class that stores less than it counts."""

    class Logical(base):
        _layer_type = None  # transformers registers subclasses that name one
        removed: int = 0
        memory: Memory | None = None
        leads: bool = False  # one layer tells the memory what happens to all of them

        @contextmanager
        def _physical(self) -> Iterator[int]:
            """The base class must reckon with what it stores."""
            removed, self.removed = self.removed, 0
            try:
                yield removed
            finally:
                self.removed = removed

        def get_seq_length(self) -> int:
            return super().get_seq_length() + self.removed

        def get_mask_sizes(self, query_length):
            with self._physical() as removed:
                length, offset = super().get_mask_sizes(query_length)
            return length, offset + removed

        def update(self, *args, **kwargs):
            if self.memory is not None and self.memory.needs_run and not self.memory.prepared:
                raise UnsupportedError(
                    "this cache holds a shortened prompt whose masks or positions only a run can supply, and none is "
                    "attached",
                    where="continuing on past_key_values",
                    hint='attach again before continuing, or compress unpadded prompts with positions="original"',
                )
            return super().update(*args, **kwargs)

        def crop(self, tokens_to_remove: int) -> None:
            with self._physical():
                super().crop(tokens_to_remove)
                stored = self.get_seq_length()
            if self.leads and self.memory is not None:
                self.memory.alive = self.memory.alive[:, :stored]

        def reset(self) -> None:
            super().reset()
            self.removed = 0
            if self.memory is not None:
                self.memory.__init__(0, self.memory.alive[:, :0])  # type: ignore[misc]

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._tell(lambda x: x.index_select(0, beam_idx.to(x.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self._tell(lambda x: x.repeat_interleave(repeats, 0))

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self._tell(lambda x: x[indices.to(x.device)])

        def _tell(self, change: Callable[[Tensor], Tensor]) -> None:
            if self.leads and self.memory is not None:
                self.memory.each_row(change)

        def __reduce__(self):  # no module holds this class: copies and pickles make it again
            return _empty, (base,), self.__dict__

    Logical.__name__ = Logical.__qualname__ = f"Logical{base.__name__}"
    return Logical


def _empty(base: Any) -> Any:
    cls = _logical(base)
    return cls.__new__(cls)


def _is_logical(layer: object) -> bool:
    return hasattr(type(layer), "leads")


def check_supported(cache: Any, where: str) -> None:
    """Refuse caches whose layers cannot hold fewer tokens than they count.

    Raises:
        UnsupportedError: static, quantized, offloaded or recurrent caches, and what is no cache of layers.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    fault = "" if hasattr(cache, "layers") else f"{type(cache).__name__} is not a cache with layers, and"
    for layer in getattr(cache, "layers", ()):
        base = type(layer).__mro__[1] if _is_logical(layer) else type(layer)
        if base not in (DynamicLayer, DynamicSlidingWindowLayer):
            fault = f"a cache with {type(layer).__name__}"
            break
    if getattr(cache, "offloading", False):
        fault = "an offloaded cache"
    if fault:
        raise UnsupportedError(
            f"{fault} cannot hold a shortened prompt",
            where=where,
            hint="the default cache (no cache_implementation), or remove the run for this call",
        )


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
        memory = Memory(0, alive)
        setattr(cache, MEMORY, memory)
    memory.removed += removed
    memory.alive = alive
    if back is not None:
        memory.back = back if memory.back is None else memory.back + back
    memory.needs_run = memory.needs_run or needs_run
    for i, layer in enumerate(cache.layers):
        if not _is_logical(layer):
            base: Any = type(layer)
            layer.__class__ = _logical(base)
        layer.removed += removed
        layer.memory = memory
        layer.leads = i == 0


def stored_columns(cache: Any) -> int:
    """Columns the first layer holds, as opposed to those it counts (for a sliding one: has held)."""
    memory = memory_of(cache)
    return int(cache.get_seq_length()) - (memory.removed if memory else 0)
