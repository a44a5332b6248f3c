"""Reads queries and keys of single attention modules, whatever kernel computes their attention.

transformers looks its attention function up by name for every call. A tapped module gets a copy of its own config that
names a function of ours; that one hands q and k to the readers and then calls the original. Outputs stay bit-identical,
sdpa and flash stay on, and only the rows a method asked for are computed again.
"""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Attend = Callable[..., "tuple[Tensor, Tensor | None]"]
_instead: weakref.WeakKeyDictionary[nn.Module, Attend] = weakref.WeakKeyDictionary()
Reader = Callable[[nn.Module, Tensor, Tensor, Tensor | None, dict], "Tensor | None"]
_readers: weakref.WeakKeyDictionary[nn.Module, list[Reader]] = weakref.WeakKeyDictionary()
PREFIX = "foveate_tap_"  # a prefix, because flash code paths test for "flash" anywhere in the name


def tap(module: nn.Module, reader: Reader) -> Callable[[], None]:
    """Call ``reader(module, query, key, mask, kwargs)`` at every attention of ``module``.

    query and key are (b, heads, tokens, head width), after any rotary embedding and normalisation; kwargs holds what the
    kernel gets, and the "value" tensor. If the reader returns a mask, later readers and the kernel get that one.

    Returns:
        A function that removes this reader, and the tap with the last one.
    """
    from transformers import AttentionInterface

    if module not in _readers:
        config: Any = module.config
        base = config._attn_implementation
        AttentionInterface.register(PREFIX + base, _through(base))
        _readers[module] = []
        module.__dict__["_foveate_config"] = config
        own = copy.copy(config)
        own._attn_implementation_internal = PREFIX + base
        module.config = own
    _readers[module].append(reader)

    def remove() -> None:
        left = _readers.get(module)
        if left and reader in left:
            left.remove(reader)
        if not left and "_foveate_config" in module.__dict__:
            module.config = module.__dict__.pop("_foveate_config")
            _readers.pop(module, None)

    return remove


def instead(module: nn.Module, attend: Attend) -> Callable[[], None]:
    """Let ``attend(kernel, query, key, value, mask, scale)`` work out the attention of ``module``, which has a tap.

    ``kernel(query, key, value, mask)`` is the module's own, also for some of the rows or heads; both give (b, q, heads,
    width), and weights or None. Returns a function that ends it.
    """
    before = _instead.get(module)
    _instead[module] = attend

    def remove() -> None:
        _instead.pop(module, None)
        if before is not None:
            _instead[module] = before

    return remove


def _through(base: str):
    def attend(module, query, key, value, attention_mask=None, **kwargs):
        for reader in _readers.get(module, ()):
            with torch.no_grad():
                more = {**kwargs, "value": value.detach()}
                mask = reader(module, query.detach(), key.detach(), attention_mask, more)
                attention_mask = attention_mask if mask is None else mask
        change = _instead.get(module)
        # Kernels look at the name in the module's config, too (flash picks its library by it): show them the true one.
        if "_foveate_config" in module.__dict__:
            module = copy.copy(module)
            module.config = module.__dict__["_foveate_config"]
        if base == "eager":
            # The one that the module's forward names: a library file may have one for text and one for pictures.
            names = inspect.unwrap(type(module).forward).__code__.co_names
            name = next((n for n in names if n.endswith("eager_attention_forward")), "eager_attention_forward")
            function = getattr(sys.modules[type(module).__module__], name)
        else:
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

            function = ALL_ATTENTION_FUNCTIONS[base]
        if change is None:
            return function(module, query, key, value, attention_mask, **kwargs)

        def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
            shown = module
            if key.shape[1] == query.shape[1]:  # as many key heads as query heads, whatever the module has
                shown = copy.copy(module)
                shown.num_key_value_groups = 1
            return function(shown, query, key, value, mask, **kwargs)

        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return change(kernel, query, key, value, attention_mask, scale)

    return attend


def rows(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of a few queries, in float32.

    Args:
        query: (b, heads, q, width).
        key: (b, key heads, n, width); a key head serves heads / key heads query heads.
        scale: factor on the logits.
        mask: additive or boolean, broadcastable to (b, heads, q, n), or None.

    Returns:
        (b, heads, q, n).
    """
    b, heads, q, width = query.shape
    shared = key.shape[1]
    logits = query.reshape(b, shared, heads // shared * q, width).float() @ key.float().mT
    logits = logits.view(b, heads, q, -1) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1)


def received(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, chunk: int = 256) -> Tensor:
    """Attention that each token receives on average from the tokens that can see it; no n x n map is stored.

    Args:
        query, key, scale, mask: as for :func:`rows`, with all n queries.
        chunk: queries per step.

    Returns:
        (b, heads, n).
    """
    total = query.new_zeros(query.shape[0], query.shape[1], key.shape[2], dtype=torch.float32)
    seen: Tensor | float = 0.0
    for start in range(0, query.shape[2], chunk):
        part = slice(start, start + chunk)
        cut = None if mask is None else mask[:, :, part] if mask.shape[2] > 1 else mask
        weights = rows(query[:, :, part], key, scale, cut).nan_to_num()
        total = total + weights.sum(2)
        if cut is None:
            seen = seen + weights.shape[2]
        else:
            visible = cut if cut.dtype == torch.bool else cut > -1e4
            seen = seen + visible.expand(*weights.shape[:1], -1, weights.shape[2], -1).float().sum(2)
    return total / (seen.clamp(min=1) if isinstance(seen, Tensor) else seen)
