"""The key/value cache of a shortened prompt, and what later calls have to know about it.

After the prompt was shortened the cache stores fewer tokens than the caller's ids and masks count. A layer that reports
its *logical* length, and an offset for its first stored column, lets everything else stay stock: causal masks, padding
masks, ``generate`` on a returned cache, positions.

Columns are counted three ways. The *caller's* are those of the ids. What left before the language model is not among the
*base* columns, by which masks are made and of which ``removed`` tells the difference. A layer that lost more holds some of
the base columns: its :class:`Columns` say which.
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


@dataclass
class Columns:
    """Which base columns a layer holds of the prompts it has seen; later ones it holds all.

    Attributes:
        index: (b, s) base columns, where all key heads hold the same ones; of any one head otherwise.
        alive: (b, s) False for slots that hold nothing to be seen.
        total: base columns counted when this was written.
    """

    index: Tensor
    alive: Tensor
    total: int

    @property
    def gone(self) -> int:
        """Base columns that the layer does not hold."""
        return self.total - self.index.shape[1]

    def now(self, stored: int, base: int) -> tuple[Tensor, Tensor]:
        """(b, stored) base columns and which are alive, of the last ``stored`` that the layer held when ``base`` were counted."""
        later = torch.arange(self.total, base, device=self.index.device).expand(len(self.index), -1)
        index = torch.cat([self.index, later], 1)
        alive = torch.cat([self.alive, torch.ones_like(later, dtype=torch.bool)], 1)
        return index[:, index.shape[1] - stored :], alive[:, alive.shape[1] - stored :]

    def cropped(self, held: int) -> None:
        """Forget what a layer that now holds ``held`` slots, later ones included, has lost of the prompt's end."""
        lost = max(0, self.index.shape[1] - held)
        if lost:
            self.index, self.alive = self.index[:, :-lost], self.alive[:, :-lost]
            self.total -= lost

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let the rows follow the cache. change: from (b, ...) to (b', ...)."""
        self.index, self.alive = change(self.index), change(self.alive)


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
        columns: Columns | None = None  # if it holds fewer than the base columns
        ledger: Any = None  # of a method that evicts while decoding
        blind: Any = None  # which heads do not look at the image

        @contextmanager
        def _physical(self) -> Iterator[int]:
            """The base class must reckon with what it stores."""
            removed, columns = self.removed, self.columns
            self.removed, self.columns = 0, None
            try:
                yield removed
            finally:
                self.removed, self.columns = removed, columns

        def get_seq_length(self) -> int:
            gone = 0 if self.columns is None else self.columns.gone
            return super().get_seq_length() + self.removed + gone

        def get_mask_sizes(self, query_length):
            # Masks are made once for all layers of a kind, from the first of them: in base columns.
            gone = 0 if self.columns is None else self.columns.gone
            with self._physical() as removed:
                if gone and hasattr(self, "cumulative_length"):
                    self.cumulative_length += gone
                    length, offset = super().get_mask_sizes(query_length)
                    self.cumulative_length -= gone
                else:
                    length, offset = super().get_mask_sizes(query_length)
                    length += gone
            return length, offset + removed

        def update(self, keys, *args, **kwargs):
            memory = self.memory
            if (
                memory is not None
                and (memory.needs_run or (self.columns is not None and keys.shape[-2] > 1))
                and not memory.prepared
            ):
                raise UnsupportedError(
                    "this cache holds a shortened prompt whose masks or positions only a run can supply, and none is "
                    "attached",
                    where="continuing on past_key_values",
                    hint='attach again before continuing, or compress unpadded prompts with positions="original"',
                )
            return super().update(keys, *args, **kwargs)

        def crop(self, tokens_to_remove: int) -> None:
            with self._physical():
                super().crop(tokens_to_remove)
                held = self.get_seq_length()
            if self.columns is not None:
                self.columns.cropped(held)
                held += self.columns.gone
            if self.leads and self.memory is not None:
                self.memory.alive = self.memory.alive[:, :held]

        def reset(self) -> None:
            super().reset()
            self.removed, self.columns, self.ledger, self.blind = 0, None, None, None
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
            for each in (self.columns, self.ledger, self.blind):
                if each is not None:
                    each.each_row(change)

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


def columns_of(layer: Any) -> Columns | None:
    """Which base columns a cache layer holds, or None if all."""
    return getattr(layer, "columns", None)


def held_by(layer: Any) -> int:
    """Slots that a cache layer has stored; a sliding one keeps the last of them only."""
    return 0 if layer.keys is None or not layer.is_initialized else int(layer.keys.shape[-2])


def stored_columns(cache: Any) -> int:
    """Columns the first layer holds, as opposed to those it counts (for a sliding one: has held)."""
    memory = memory_of(cache)
    return int(cache.get_seq_length()) - (memory.removed if memory else 0)
