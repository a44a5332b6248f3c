"""Merged tokens that carry several positions: PPE (arXiv:2510.22936), for any method that merges.

A rotary embedding turns pairs of channels, each by its frequency times the token's position. With several axes (M-RoPE)
each pair listens to one of them, and the pairs of one axis are its *section*. Here the pairs of every section are dealt
out, in P equal parts from high to low frequency: part p turns by the position of the p-th of the tokens that were merged.

The model's own rotary module works this out. After its call it is called once more, on the merged tokens alone, P times
their number of positions at once, and what it gives is put together by part. Tokens that were not merged keep what they had.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..families import Family
from ..tokens import Reduction
from .follow import Cut
from .picture import Picture


@dataclass(frozen=True)
class Carried:
    """The merged tokens of one call, s in all its rows together.

    Attributes:
        row, column: (s,) where they are in the shortened prompts.
        away: (axes, P, s) position of each member, counted from the token's own.
    """

    row: Tensor
    column: Tensor
    away: Tensor


class Rotary:
    """The rotary modules of a language model, and what they have to know during a call. It is known to its thread alone.

    Attributes:
        count: P, positions per merged token: the largest number, not above the one asked for, that divides all sections.
        sections: frequencies per axis, of every module and kind of layer.
    """

    def __init__(self, family: Family, most: int, undo: list[Callable[[], None]]) -> None:
        """Find the modules and hook them.

        Args:
            family: of the model.
            most: positions per merged token that were asked for.
            undo: gets what takes the hooks off again.

        Raises:
            UnsupportedError: if the language model has no rotary module of the usual form.
        """
        self._here = threading.local()
        model: Any = family.model
        modules = [module for module in model.get_decoder().modules() if _is_rotary(module)]
        if not modules:
            raise UnsupportedError(
                f"the language model of {type(model).__name__} has no rotary position embedding that takes position ids",
                where=f'family {family.name}, positions="preserved"',
                hint='positions="original"',
            )
        ranks = {(module, kind): _ranks(module, kind) for module in modules for kind in _kinds(module)}
        self.sections = sorted({size for found in ranks.values() for _, size in found if size})
        self.count = next(p for p in range(most, 0, -1) if all(size % p == 0 for size in self.sections))
        self._parts = {
            key: torch.tensor([rank * self.count // max(1, size) for rank, size in found])
            for key, found in ranks.items()
        }
        undo += [module.register_forward_hook(self._again, with_kwargs=True).remove for module in modules]

    def during(self, carried: Carried | None) -> None:
        """From now on this thread's call has these merged tokens, or none."""
        self._here.carried = carried

    @torch.no_grad()
    def _again(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The rotary module's output, with merged tokens turned by all their positions."""
        carried: Carried | None = getattr(self._here, "carried", None)
        if carried is None:
            return None
        call = inspect.signature(module.forward).bind(*args, **kwargs)
        ids = call.arguments["position_ids"]  # (b, L) or (axes, b, L)
        row, column, away = (x.to(ids.device) for x in (carried.row, carried.column, carried.away))
        own = ids[..., row, column]  # (s,) or (axes, s)
        places = own + away[-1] if ids.ndim == 2 else own[:, None] + away[-len(ids) :]  # (P, s) or (axes, P, s)
        # Frequencies may depend on the largest position of a call; so it comes along.
        call.arguments["position_ids"] = torch.cat([places, ids.max().expand(*places.shape[:-1], 1)], -1)
        more: Any = module.forward(*call.args, **call.kwargs)
        part = self._parts[module, call.arguments.get("layer_type")].to(ids.device)

        def put(stock: Tensor, new: Tensor) -> Tensor:
            """stock: (b, L, channels); new: (P, s + 1, channels)."""
            chosen = new[:, :-1].gather(0, part.expand(1, len(row), -1))[0]
            return stock.index_put((row.to(stock.device), column.to(stock.device)), chosen.to(stock))

        return put(output, more) if isinstance(output, Tensor) else tuple(map(put, output, more))


def carry(prompts: list[list[Picture]], repeat: int, positions: Tensor, cut: Cut, count: int) -> Carried | None:
    """Which positions the merged tokens of a batch carry; written into its pictures, too.

    Args:
        prompts: the reduced pictures of each prompt.
        repeat: batch rows per prompt.
        positions: (b or 1, L) or (axes, b or 1, L) before the cut.
        cut: what remains of the batch.
        count: P.

    Returns:
        None if nothing was merged.
    """
    full = positions if positions.ndim == 3 else positions[None]
    full = full[-3:].expand(-1, len(cut.index), -1)  # of four axes the first counts text and turns nothing
    new = torch.zeros(len(cut.index), cut.length, dtype=torch.long, device=cut.index.device)
    new.scatter_(1, cut.index, torch.arange(cut.index.shape[1], device=new.device).expand_as(cut.index))
    rows, columns, away = [], [], []
    for row in range(len(cut.index)):
        for p in prompts[row // repeat]:
            done = Reduction.identity(len(p.places), p.places.device) if p.reduction is None else p.reduction
            if p.members is None:
                p.members = members(done, count).to(p.places.device)
            anchor = done.anchor.to(p.places.device)
            found = full[:, row, p.places[p.members]]  # (axes, m, P)
            if p.positions is None:
                p.positions = found
            merged = (p.members != anchor[:, None]).any(1).nonzero()[:, 0]
            own = p.places[anchor[merged]]
            rows.append(torch.full_like(own, row))
            columns.append(new[row, own])
            away.append((found[:, merged] - full[:, row, own][..., None]).mT)  # (axes, P, s)
    if not sum(map(len, rows)):
        return None
    return Carried(torch.cat(rows), torch.cat(columns), torch.cat(away, -1))


def members(reduction: Reduction, most: int) -> Tensor:
    """(m, most) tokens whose positions each slot carries.

    Those that feed it, from the largest weight down; of equals the anchor comes first, then the lowest index. Fewer than
    ``most`` are repeated in turn. A slot that is fed by one token, or by none, carries its anchor.
    """
    alone = reduction.anchor[:, None].expand(-1, most)
    if reduction.is_drop:
        return alone
    # Steps that were composed may have left several edges between a token and a slot.
    edge, which = (reduction.dst * reduction.n + reduction.src).unique(return_inverse=True)
    weight = torch.ones_like(which, dtype=torch.float32) if reduction.weight is None else reduction.weight.float()
    weight = torch.zeros(len(edge), device=edge.device).index_add_(0, which, weight).abs()
    edge, weight = edge[weight > 0], weight[weight > 0]
    if not len(edge):
        return alone
    dst, src = edge // reduction.n, edge % reduction.n
    order = (src != reduction.anchor[dst]).long().argsort(stable=True)
    order = order[weight[order].argsort(descending=True, stable=True)]
    order = order[dst[order].argsort(stable=True)]  # by slot, then weight, then anchor, then index
    count = torch.bincount(dst, minlength=reduction.m)[:, None]
    turn = torch.arange(most, device=src.device) % count.clamp(min=1)
    place = (count.cumsum(0) - count + turn).clamp(max=len(src) - 1)
    return torch.where(count > 1, src[order][place], alone)


def _is_rotary(module: nn.Module) -> bool:
    """Whether a module holds frequencies and makes rotations of position ids."""
    frequencies = any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    return frequencies and "position_ids" in inspect.signature(module.forward).parameters


def _kinds(module: nn.Module) -> tuple[str | None, ...]:
    """Kinds of layers for which a module has frequencies of their own, or None where there is one set for all."""
    named = "layer_type" in inspect.signature(module.forward).parameters
    return tuple(getattr(module, "layer_types", ())) or (None,) if named else (None,)


@torch.no_grad()
def _ranks(module: nn.Module, kind: str | None) -> list[tuple[int, int]]:
    """Of each channel the rank of its frequency in its section, and how many frequencies that section has.

    Where the frequencies lie differs by model: in two halves or by turns, sections one after another or interleaved, sines
    and cosines or complex numbers. So the module is asked: a channel's axis is the one whose position 1 turns it, and
    channels that turn alike share a frequency. Channels that never turn are (0, 0).
    """
    device = next(buffer.device for name, buffer in module.named_buffers(recurse=False) if name.endswith("inv_freq"))
    device = torch.device("cpu") if device.type == "meta" else device
    ones = torch.eye(3, dtype=torch.long, device=device)[..., None]  # (axes, 3, 1): in row a only axis a is at 1
    more = {} if kind is None else {"layer_type": kind}
    output: Any = module.forward(torch.zeros(1, device=device), position_ids=ones, **more)
    sine = output.imag if isinstance(output, Tensor) else output[1]
    turns = sine[:, 0] if sine.ndim == 3 else sine[0, 0]  # (3, channels), or (1, channels) where axes are one
    seen: list[dict[tuple[float, ...], int]] = [{} for _ in turns]  # per axis: what it looks like, and its rank
    found = []
    for look in map(tuple, turns.T.tolist()):
        axis = max(range(len(look)), key=lambda a: abs(look[a]))
        found.append((axis, seen[axis].setdefault(look, len(seen[axis]))) if any(look) else None)
    return [(0, 0) if one is None else (one[1], len(seen[one[0]])) for one in found]
