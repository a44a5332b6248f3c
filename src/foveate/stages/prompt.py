"""A call's arguments without the columns that its pictures lost, and those of the calls that follow on its cache.

Everything that depends on padding, positions, masks and earlier turns is worked out here, once for the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..families import Family
from ..plan import Plan
from . import cache as caches
from .follow import Cut, recount, shorten
from .picture import Picture
from .positions import Carried, carry

ENDING = "_foveate_ending"  # attribute of shortened encoder outputs


@dataclass(frozen=True)
class Base:
    """The columns with which a prompt enters the language model.

    Attributes:
        valid: (b, L') those that are not padding.
        counts: how many these are, row by row.
        right: whether padding is on the right.
        cut: how they were made from the caller's, or None if these are they.
    """

    valid: Tensor
    counts: list[int]
    right: bool
    cut: Cut | None = None

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> Base:
        """Those of a prompt that was not shortened."""
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        valid = torch.ones_like(ids, dtype=torch.bool)
        if mask is None:
            return cls(valid, [ids.shape[1]] * len(ids), False)
        valid = mask[:, mask.shape[1] - ids.shape[1] :].bool()
        counts, ends = torch.stack([valid.sum(1), valid[:, -1]]).tolist()
        return cls(valid, counts, not all(ends))

    def take(self, x: Tensor) -> Tensor:
        """Of a mask (b, L) over the caller's columns, that over these."""
        return x if self.cut is None else self.cut.take(x) & self.cut.alive

    def ends(self, text: Tensor) -> list[int]:
        """The column after the last of each prompt. text: (b, L) the caller's columns that belong to it."""
        there = self.take(text).long()
        return (there.shape[1] - there.flip(1).argmax(1)).tolist()

    def columns(self, row: int, picture: Picture) -> Tensor:
        """(n,) columns of a picture's tokens in a row."""
        if self.cut is None:
            return picture.places
        old = picture.places
        if picture.reduction is not None:
            old = old[picture.reduction.anchor.to(old.device)]
        index = self.cut.index[row].to(old.device)
        at = old.new_full((self.cut.length,), -1).index_copy(0, index, torch.arange(len(index), device=old.device))
        return at[old]


@dataclass(frozen=True)
class Ending:
    """What a cache has to remember once the call that shortened its prompt is over; see :func:`caches.remember`.

    And, while it lasts, the positions that its merged tokens carry.
    """

    removed: int
    alive: Tensor
    back: Tensor | None
    needs_run: bool
    base: Base
    carried: Carried | None = None


def shortened(
    family: Family,
    plan: Plan,
    kwargs: dict[str, Any],
    output: Any,
    prompts: list[list[Picture]],
    repeat: int,
    past: Any,
    memory: caches.Memory | None,
    count: int = 0,
    gone: Tensor | None = None,
) -> dict[str, Any]:
    """The call's arguments without the columns that the pictures lost.

    Args:
        kwargs: of the model's forward, encoded; not modified.
        output: of the encoder.
        prompts: the reduced pictures of each prompt.
        repeat: batch rows per prompt.
        past: the cache, or None.
        memory: what it knows of earlier turns.
        count: positions that a merged token carries; 0 if only its anchor's.
        gone: (b, L) further columns to leave out, of text; or None.

    Raises:
        UnsupportedError: if the cache or the mask cannot be shortened.
    """
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    if past is not None:
        caches.check_supported(past, f"family {family.name}, plan {plan}")
    check_mask(family, plan, mask)
    rows, length = ids.shape
    base = Base.of(kwargs)
    valid, counts, right = base.valid, list(base.counts), base.right
    whole = min(counts) == length

    keep = valid.clone()
    features: list[Tensor] = []
    planes: list[list[Tensor]] = []
    for row in range(rows):
        for p in prompts[row // repeat]:
            if p.reduction is not None:
                keep[row, p.places] = False
                keep[row, p.places[p.reduction.anchor.to(p.places.device)]] = True
                counts[row] -= p.reduction.n - p.reduction.m
            features.append(p.x)
            planes.append(p.planes)
    lost = 0
    if gone is not None:
        keep &= ~gone
        fewer_text = (gone & valid).sum(1).tolist()
        counts = [n - few for n, few in zip(counts, fewer_text, strict=True)]
        lost = sum(fewer_text)
    lost += sum(p.reduction.n - p.reduction.m for prompt in prompts for p in prompt if p.reduction is not None)
    # Padding leaves with the rest, unless all of it is needed to keep the rows equally long.
    cut = Cut.keeping(keep, counts, right) if lost else Cut.nothing(valid, whole)

    counted = 0 if past is None else int(past.get_seq_length())
    stored = 0 if past is None else caches.stored_columns(past)
    positions = _positions(family, kwargs, counted, memory)
    new = shorten(kwargs, cut, valid & ~keep, positions, family.pad_token_id)
    back = None
    if plan.positions == "contiguous" and lost:
        new["position_ids"], back = recount(new["position_ids"], cut.alive)

    alive, hidden = cut.alive, not cut.all_alive
    if stored:
        earlier = _earlier(mask, memory, stored, counted, rows, ids.device)
        hidden = hidden or not bool(earlier.all())
        alive = torch.cat([earlier, alive], 1)
    gap = 0 if memory is None else memory.removed
    if lost or gap or (memory is not None and memory.needs_run):
        # Without a cache the library reads gaps in position ids as borders of packed sequences, unless it is given
        # a mask. With one, no mask is the faster call.
        new["attention_mask"] = None
        if hidden or past is None:
            new["attention_mask"] = torch.cat([alive.new_zeros(rows, gap), alive], 1).long()
        new |= _one_sequence(family, plan, new, hidden, stored)
    if memory is not None:
        memory.prepared = True
    unfit = bool(lost) and (hidden or back is not None)
    carried = carry(prompts, repeat, positions, cut, count) if count else None
    ending = Ending(cut.removed, alive, back, unfit, Base(cut.alive, counts, right, cut), carried)
    if output is None:  # a prompt of text
        return {**new, ENDING: ending}
    joined = [torch.cat(stack) for stack in zip(*planes, strict=True)]
    fewer = family.replaced(output, features, joined)
    setattr(fewer, ENDING, ending)
    new["mm_encoder_outputs"] = {**kwargs["mm_encoder_outputs"], "image": fewer}
    return new


def _one_sequence(family: Family, plan: Plan, new: dict[str, Any], hidden: bool, stored: int) -> dict[str, Any]:
    """Flash attention reads gaps in the positions of a single row as borders of packed sequences; say it is one."""
    ids, positions = new["input_ids"], new["position_ids"]
    model: Any = family.model
    flash = "flash" in (model.config.get_text_config()._attn_implementation or "")
    if not flash or hidden or len(ids) > 1 or plan.positions == "contiguous":
        return {}
    if stored:
        raise UnsupportedError(
            "flash attention cannot continue a cache with positions that have gaps",
            where=f"family {family.name}, {stored} stored columns, positions={plan.positions!r}",
            hint='positions="contiguous", or attn_implementation="sdpa"',
        )
    borders = torch.tensor([0, ids.shape[1]], dtype=torch.int32, device=positions.device)
    return {f"cu_seq_lens_{x}": borders for x in "qk"} | {f"max_length_{x}": ids.shape[1] for x in "qk"}


def all_alive(kwargs: dict[str, Any], valid: Tensor, past: Any, memory: caches.Memory | None) -> Tensor:
    """(b, stored + L') which base columns are not padding, those of earlier turns included."""
    stored = 0 if past is None else caches.stored_columns(past)
    if not stored:
        return valid
    counted = int(past.get_seq_length())
    return torch.cat(
        [_earlier(kwargs.get("attention_mask"), memory, stored, counted, len(valid), valid.device), valid], 1
    )


def _earlier(
    mask: Tensor | None, memory: caches.Memory | None, stored: int, counted: int, rows: int, device: Any
) -> Tensor:
    """(b, stored) which columns of an earlier turn are not padding."""
    if memory is not None:
        return memory.columns(None if mask is None else mask[:, :counted], stored, 0)
    if mask is not None and mask.shape[1] >= counted:
        return mask[:, :stored].bool()
    return torch.ones(rows, stored, dtype=torch.bool, device=device)


def continued(
    family: Family, plan: Plan, kwargs: dict[str, Any], past: Any, memory: caches.Memory | None
) -> dict[str, Any]:
    """Arguments of a call on a cache that holds a shortened prompt: decoding, or a turn without new images."""
    if memory is None or not memory.needs_run:
        return kwargs
    ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    given = kwargs.get("attention_mask")
    check_mask(family, plan, given)
    # By the caller's mask: some models count along it.
    positions = _positions(family, kwargs, int(past.get_seq_length()), memory)
    memory.prepared = True
    mask = memory.mask(given, caches.stored_columns(past), ids.shape[1])
    return {**kwargs, "attention_mask": mask, "position_ids": positions}


def _positions(family: Family, kwargs: dict[str, Any], counted: int, memory: caches.Memory | None) -> Tensor:
    """Position ids of all columns of the call; earlier turns may have moved them back."""
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = family.positions(kwargs, counted)
    if memory is not None and memory.back is not None:
        positions = positions - _rows(memory.back, positions)
    return positions


def check_mask(family: Family, plan: Plan, mask: Any) -> None:
    """Raise UnsupportedError unless columns can be taken out of the mask."""
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise UnsupportedError(
            "the attention mask is not two-dimensional, as with a static cache or a mask of your own",
            where=f"family {family.name}, plan {plan}",
            hint="no cache_implementation, and a (batch, length) mask",
        )


def _rows(back: Tensor, positions: Tensor) -> Tensor:
    """``back`` for positions with another number of axes. Of four, the first counts text and rotates nothing."""
    if back.ndim == 2 or positions.ndim == 2:
        return back if positions.ndim == back.ndim else (back[0] if back.ndim == 3 else back[None])
    if len(positions) == 4 and len(back) == 3:
        return torch.cat([back[:1], back])
    return back[1:] if len(back) == 4 and len(positions) != 4 else back
