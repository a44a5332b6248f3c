"""What a layer leaves out for an image's tokens: attention among them, heads, the feed-forward network.

Rows that are left out are not computed: the kernel gets the other rows, or the other heads. Where image tokens see their
neighbours only, their attention is worked out here, over these neighbours and what is not of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..routes import Work
from .strip import Strip

if TYPE_CHECKING:
    from .prefill import Prefill

CHUNK = 256  # queries whose neighbours are gathered at a time
GATHERED = 4  # how much more a gathered pair of query and key costs than one in the kernel
Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], "tuple[Tensor, Tensor | None]"]


@dataclass
class Blind:
    """Which heads of a layer do not look at which columns, for the steps of decoding.

    Attributes:
        columns: (b, base) bool.
        heads: (b, heads) True for those that look.
    """

    columns: Tensor
    heads: Tensor

    @classmethod
    def none(cls, rows: int, base: int, heads: int, device: torch.device) -> Blind:
        """All heads look at everything."""
        every = torch.ones(rows, heads, dtype=torch.bool, device=device)
        return cls(torch.zeros(rows, base, dtype=torch.bool, device=device), every)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        """Let the rows follow the cache. change: from (b, ...) to (b', ...)."""
        self.columns, self.heads = change(self.columns), change(self.heads)

    def values(self, value: Tensor, number: Tensor) -> Tensor:
        """(b, heads, s, c) values, zero where a head does not look. value: (b, h, s, c); number: (b, s) base columns."""
        known = number.clamp(max=self.columns.shape[1] - 1)
        unseen = self.columns.gather(1, known) & (number < self.columns.shape[1])
        wide = every_head(value, self.heads.shape[1])
        return wide.masked_fill((unseen[:, None] & ~self.heads[..., None])[..., None], 0)


def attend(
    call: Prefill,
    number: int,
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """The attention of a layer in a prefill: (b, m, heads, c).

    Args:
        call, number: the prefill, and which layer.
        kernel: the layer's own attention.
        query: (b, heads, m, c) of the slots that run.
        key, value: (b, key heads, s, c) of what was stored before, and of these slots.
        mask: as the kernel would get it.
        scale: factor on the logits.
    """
    strips = [s for s in call.strips if s.work is not None and not s.work.attends]
    if not strips:
        return kernel(query, key, value, mask)
    length, total = query.shape[2], key.shape[2]
    first, out, masks, pairs = total - length, list[Tensor](), list[Tensor](), 0.0
    at = call.slots(query.device)
    for row in range(len(query)):
        mine = [s for s in strips if s.row == row]
        q, k, v = query[row : row + 1], key[row : row + 1], value[row : row + 1]
        seen = _seen(mask, row, length, total, query.device)  # (1, heads or 1, m, s) bool
        if not mine:
            masks.append(seen)
            out.append(kernel(q, k, v, None if mask is None else _shown(seen, mask))[0])
            pairs += length * total
            continue
        result = query.new_zeros(1, length, query.shape[1], value.shape[-1])
        rest = torch.ones(length, dtype=torch.bool, device=query.device)
        text, shown = seen.expand(1, -1, -1, -1).clone(), v
        for strip in mine:
            work, slots = strip.work, at[row, strip.runs.to(query.device)]
            assert work is not None
            if work.hidden is not None:
                rows = at[row, call.glance.asks(strip).to(query.device)]
                content = at[row, strip.columns[strip.content()].to(query.device)]
                text[:, :, rows[:, None], first + content] &= ~work.hidden.to(query.device)
            if work.heads is not None:
                heads = _looking(work.heads, query.shape[1], query.device)
                shown = every_head(shown, len(heads)).clone()
                shown[:, ~heads] = shown[:, ~heads].index_fill(2, first + slots, 0)
                call.blind(number, row, strip, heads)
            if isinstance(work.sees, str) and work.sees == "all" and work.heads is None:
                continue
            rest[slots] = False
            states, cost = _of_image(work, strip, kernel, q, k, v, seen, mask, slots, first, scale)
            result[:, slots] = states
            pairs += cost
        others = rest.nonzero()[:, 0]
        if len(others):
            keys = every_head(k, shown.shape[1])
            states = kernel(q[:, :, others], keys, shown, _shown(text[:, :, others], mask))[0]
            result[:, others] = states
            pairs += len(others) * total
        out.append(result)
        masks.append(text)
    if call.seen is not None and any(s.work is not None and s.work.hidden is not None for s in strips):
        wide = max(one.shape[1] for one in masks)
        call.seen.mask = torch.cat([one.expand(1, wide, length, total) for one in masks])  # what later steps read
    call.pairs[number] = pairs
    return torch.cat(out), None


def _of_image(
    work: Work,
    strip: Strip,
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    like: Tensor | None,
    slots: Tensor,
    first: int,
    scale: float,
) -> tuple[Tensor, float]:
    """(1, n, heads, c) attention of an image's own rows, and how many pairs of query and key a head looked at on average."""
    heads = q.shape[1]
    on = _looking(work.heads, heads, q.device)
    share = int(on.sum()) / heads
    result = q.new_zeros(1, len(slots), heads, v.shape[-1])
    if (isinstance(work.sees, str) and work.sees == "nothing") or not share:
        return result, 0.0
    if isinstance(work.sees, str) and work.sees == "itself":
        result[:, :, on] = every_head(v, heads)[:, on][:, :, first + slots].transpose(1, 2)
        return result, 0.0
    rows, keys, values = q[:, on][:, :, slots], every_head(k, heads)[:, on], every_head(v, heads)[:, on]
    mask = seen[:, :, slots] if seen.shape[1] == 1 else seen[:, on][:, :, slots]
    near, outside = None, slots
    if isinstance(work.sees, Tensor):
        near = _with_structure(work.sees.to(q.device), strip)  # (n, s)
        other = torch.ones(k.shape[2], dtype=torch.bool, device=q.device).index_fill(0, first + slots, False)
        outside = other.nonzero()[:, 0]
        if GATHERED * (len(outside) + near.shape[1]) > k.shape[2]:  # the kernel is quicker, with a mask
            mask, near = _near(mask, near, first + slots), None
    if near is None:
        result[:, :, on] = kernel(rows, keys, values, _shown(mask, like))[0]
        return result, share * len(slots) * k.shape[2]
    states = []
    for part in torch.arange(len(slots), device=q.device).split(CHUNK):
        some = near[part].clamp(min=0)
        here = first + slots[some]  # (p, s)
        ask = rows[0, :, part].float()  # (heads, p, c)
        far = ask @ keys[0, :, outside].float().mT * scale  # (heads, p, o)
        far = far.masked_fill(~seen[0, :, slots[part]][..., outside], -torch.inf)
        close = torch.einsum("hpc,hpsc->hps", ask, keys[0, :, here].float()) * scale
        close = close.masked_fill(near[part] < 0, -torch.inf)
        weight = torch.cat([far, close], -1).softmax(-1)
        mixed = weight[..., : len(outside)] @ values[0, :, outside].float()
        mixed = mixed + torch.einsum("hps,hpsc->hpc", weight[..., len(outside) :], values[0, :, here].float())
        states.append(mixed.to(q.dtype))
    result[:, :, on] = torch.cat(states, 1).transpose(0, 1)[None]
    return result, share * len(slots) * (len(outside) + near.shape[1])


def _near(mask: Tensor, near: Tensor, slots: Tensor) -> Tensor:
    """A mask (1, h, n, s) under which an image's tokens, at slots (n,), see of one another those of near (n, w) alone."""
    n = len(slots)
    square = torch.zeros(n, n + 1, dtype=torch.bool, device=mask.device)
    square.scatter_(1, torch.where(near >= 0, near, n), True)
    mask = mask.clone()
    mask[..., slots] = square[:, :n]
    return mask


def _looking(some: Tensor | None, heads: int, device: torch.device) -> Tensor:
    """(heads,) True for those that look."""
    if some is None:
        return torch.ones(heads, dtype=torch.bool, device=device)
    if len(some) and not 0 <= int(some.min()) <= int(some.max()) < heads:
        raise MethodError(f"heads {some.tolist()} of a layer that has {heads}", hint=f"numbers from 0 to {heads - 1}")
    return torch.zeros(heads, dtype=torch.bool, device=device).index_fill(0, some.to(device), True)


def _with_structure(near: Tensor, strip: Strip) -> Tensor:
    """Neighbours among all running tokens of a strip, structure included, which sees itself alone. near: over the content."""
    if strip.whole:
        return near
    content = strip.content().to(near.device)
    every = torch.full((strip.layout.n, near.shape[1]), -1, device=near.device)
    every[:, 0] = torch.arange(strip.layout.n, device=near.device)
    every[content] = torch.where(near >= 0, content[near.clamp(min=0)], -1)
    return every


def every_head(x: Tensor, heads: int) -> Tensor:
    """(b, heads, s, c) keys or values of every query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _seen(mask: Tensor | None, row: int, length: int, total: int, device: torch.device) -> Tensor:
    """(1, heads or 1, m, s) which keys a row's queries see."""
    if mask is None:
        return torch.ones(1, 1, length, total, dtype=torch.bool, device=device).tril(total - length)
    mask = mask[row : row + 1] if len(mask) > 1 else mask
    mask = mask[..., -total:]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _shown(seen: Tensor, like: Tensor | None) -> Tensor:
    """A mask as the kernel takes it: of bool, or added where the model's own is; a query that sees nothing sees all."""
    seen = seen | ~seen.any(-1, keepdim=True)
    if like is None or like.dtype == torch.bool:
        return seen
    zeros = torch.zeros(seen.shape, dtype=like.dtype, device=seen.device)
    return zeros.masked_fill(~seen, torch.finfo(like.dtype).min)


class Feed:
    """Keeps an image's rows out of a layer's feed-forward network. shelf: where the present call is."""

    def __init__(self, shelf: Any, number: int, module: nn.Module, undo: list[Callable[[], None]]) -> None:
        self.shelf, self.number = shelf, number
        self._rows: Tensor | None = None
        undo.append(module.register_forward_pre_hook(self.before).remove)
        undo.append(module.register_forward_hook(self.after).remove)

    def before(self, module: nn.Module, args: tuple) -> tuple | None:
        """Only the rows that feed."""
        call: Any = getattr(self.shelf, "call", None)
        strips = [s for s in getattr(call, "strips", ()) if s.work is not None and not s.work.feeds]
        self._rows = None
        if not strips or call.number != self.number:
            return None
        x = args[0]
        at = call.slots(x.device)
        feeds = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for strip in strips:
            feeds[strip.row, at[strip.row, strip.runs.to(x.device)]] = False
        self._rows, self._shape = feeds.flatten().nonzero()[:, 0], x.shape
        return (x.flatten(0, 1)[self._rows][None], *args[1:])

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Zeros for the others: nothing is added to them."""
        if self._rows is None:
            return None
        rows, self._rows = self._rows, None
        made = output[0] if isinstance(output, tuple) else output
        made = made.reshape(-1, made.shape[-1])
        full = made.new_zeros(self._shape[0] * self._shape[1], made.shape[-1]).index_copy(0, rows, made)
        full = full.view(*self._shape[:2], -1)
        return (full, *output[1:]) if isinstance(output, tuple) else full
