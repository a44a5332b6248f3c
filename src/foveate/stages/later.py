"""What is known of a call on a cache that holds less than it counts, while the language model's layers run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..families import Family
from . import cache as caches
from .fit import Keys, mask_for
from .follow import Cut
from .work import Kernel, every_head


class Later:
    """A call on a cache some of whose layers hold fewer columns: decoding, or a turn without new pictures.

    Args:
        family: of the model.
        base: columns that were counted before the call.
        fresh: columns the call adds.
    """

    def __init__(self, family: Family, base: int, fresh: int) -> None:
        self.family, self.base, self.fresh = family, base, fresh
        model: Any = family.model
        self.kernel = model.config.get_text_config()._attn_implementation or "eager"
        self.where = f"stage layers, family {family.name}"
        self._fitted: dict[Any, tuple[Any, Any]] = {}
        self.ledgers: dict[int, Any] = {}
        self.held: Any = None  # the cache of the present layer

    def before(self, number: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """The arguments of a layer, fitted to what its cache holds; None if it holds everything."""
        held, mask = held_in(kwargs, number), kwargs.get("attention_mask")
        if held is not None and held.ledger is not None:
            self.ledgers[number] = held.ledger
        self.held = layer_of(kwargs, number)
        plain = mask is None and self.fresh == 1  # one new token sees all that is stored
        if held is None or (plain and not held.memory.needs_run):
            return None
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        mask = self._mask(mask, None, self._keys(number, held, None, states), states)
        return args, {**kwargs, "attention_mask": mask}

    def after(self, number: int, kwargs: dict[str, Any], output: Any) -> Any:
        """Let a method that evicts while decoding do so."""
        held = held_in(kwargs, number)
        if self.fresh == 1 and held is not None and held.ledger is not None:
            held.ledger.step(held, self.base + 1)

    def look(self, number: int, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> None:
        """Show a method that evicts while decoding what the new token attends to."""
        ledger = self.ledgers.get(number)
        if ledger is not None:
            ledger.look(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5, mask)

    def attend(
        self, number: int, kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """A layer's attention: heads that do not look at the image do not do so now either."""
        blind, stored = getattr(self.held, "blind", None), key.shape[2]
        if blind is None:
            return kernel(query, key, value, mask)
        total, columns = self.base + self.fresh, caches.columns_of(self.held)
        if columns is None:
            index = torch.arange(total - stored, total, device=key.device).expand(len(key), -1)
        else:
            index = columns.now(stored, total)[0].to(key.device)
        wide = blind.values(value, index)
        return kernel(query, every_head(key, wide.shape[1]), wide, mask)

    def _keys(self, number: int, held: Any, cut: Cut | None, states: Tensor) -> Keys:
        """What a layer's queries see. held: its cache, if that holds fewer than the base columns."""
        rows, device = len(states), states.device
        every = torch.arange(self.base, self.base + self.fresh, device=device).expand(rows, -1)
        index, alive = every, torch.ones_like(every, dtype=torch.bool)
        whole = True
        if cut is not None:
            index, alive, whole = cut.index.to(device) + self.base, cut.alive.to(device), cut.all_alive
        window, chunked = 0, False
        if held is not None:
            before, lives = caches.columns_of(held).now(caches.held_by(held), self.base)  # type: ignore[union-attr]
            index, alive = torch.cat([before.to(device), index], 1), torch.cat([lives.to(device), alive], 1)
            window = getattr(held, "sliding_window", 0) or 0
            chunked = "chunk" in self.family.layer_kind(number)
            whole = whole and held.memory is not None and not held.memory.needs_run
        elif self.base:
            index = torch.cat([torch.arange(self.base, device=device).expand(rows, -1), index], 1)
            alive = torch.cat([torch.ones(rows, self.base, dtype=torch.bool, device=device), alive], 1)
        return Keys(index, alive, whole, self.fresh, self.base + self.fresh, window, chunked)

    def _mask(self, mask: Any, index: Tensor | None, keys: Keys, states: Tensor) -> Any:
        return mask_for(mask, self.kernel, index, keys, states.dtype, self.where)


def layer_of(kwargs: dict[str, Any], number: int) -> Any:
    """The cache of a layer, or None."""
    layers = getattr(kwargs.get("past_key_values"), "layers", ())
    return layers[number] if number < len(layers) else None


def held_in(kwargs: dict[str, Any], number: int) -> Any:
    """The cache of a layer, if it holds fewer than the base columns."""
    layer = layer_of(kwargs, number)
    return None if layer is None or caches.columns_of(layer) is None else layer
