"""The waist: what a method sees (:class:`View`) and what it answers (:class:`Reduction`).

Axis letters, used by every comment in the package::

    n  tokens before          m  tokens after           d  feature width
    h  attention heads        q  query rows             k  budget (content tokens to keep)
    b  batch rows             e  edges of a reduction   t y x  frame, row, column of the grid
    s  source patches that were joined into one token

Answers that are not reductions are in ``routes.py`` (which tokens run in a layer, and what it does for them) and in
``entries.py`` (what stays of the cache). Room is left for more; each arrives with the first method that needs it:
``Positions`` (fractional or several positions per token), ``Insert`` (learned tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from .errors import MethodError


class Kind(IntEnum):
    """What a token stands for. Only content counts against a budget; the rest is structure."""

    CONTENT = 0
    NEWLINE = 1
    SEPARATOR = 2
    CLS = 3
    TEXT = 4


@dataclass(frozen=True)
class Extra:
    """One thing a method asked for beyond the tokens, with where it came from.

    Attributes:
        value: the tensor; its last-but-feature axis is aligned with the tokens of the view.
        layer: tower or decoder layer it was read from (-1 when that has no meaning).
        domain: over which keys the softmax ran, for attention ("cls row over all tower tokens", "mean over queries").
    """

    value: Tensor
    layer: int = -1
    domain: str = ""


@dataclass(frozen=True)
class View:
    """The tokens of one image (all its tiles), clip, page or sound, as a method sees them. No padding, no batch.

    Attributes:
        x: (n, d) features.
        k: content tokens to keep, 1 <= k <= number of content tokens.
        kind: (n,) :class:`Kind`.
        tile, t, row, col: (n,) place of each token; ``row`` and ``col`` count inside the tile.
        size: (n,) how many original tokens were merged into this one.
        marks: named (n,) tensors left by earlier steps (``Method.mark``), or by earlier stops of the same step
            (``TowerMethod.carry``).
        extras: what the method's card listed under ``needs``; "boxes" (g, 4) where the image has several tiles: left,
            top, right, bottom of each in shares of the picture; "relevance" (n,) beside "question" where the user
            gave a judge, see :func:`foveate.compress`.
        ordinal: which image of its sample this is, counted from 0.
        left: stops that are still to come, for a method that reduces little by little inside the tower or the language
            model; ``k`` is what must be left after the last.
        layer, depth: between the layers of the language model: the layer that comes next, and how many there are.
        entered: tokens when the step began, where it has several stops; else 0.
    """

    x: Tensor
    k: int
    kind: Tensor = None  # type: ignore[assignment]
    tile: Tensor = None  # type: ignore[assignment]
    t: Tensor = None  # type: ignore[assignment]
    row: Tensor = None  # type: ignore[assignment]
    col: Tensor = None  # type: ignore[assignment]
    size: Tensor = None  # type: ignore[assignment]
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Extra] = field(default_factory=dict)
    ordinal: int = 0
    left: int = 0
    layer: int = -1
    depth: int = 0
    entered: int = 0

    def __post_init__(self) -> None:
        if self.x.ndim != 2:
            raise MethodError(f"a view holds (n, d) features, got shape {tuple(self.x.shape)}")
        n, device = len(self.x), self.x.device

        def default(name: str, value: Tensor) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        zeros = torch.zeros(n, dtype=torch.long, device=device)
        default("kind", zeros)
        default("tile", zeros)
        default("t", zeros)
        default("row", zeros)
        default("col", torch.arange(n, device=device))
        default("size", torch.ones(n, dtype=torch.float32, device=device))
        for name in ("kind", "tile", "t", "row", "col", "size"):
            if getattr(self, name).shape != (n,):
                raise MethodError(f"{name} has shape {tuple(getattr(self, name).shape)}, the view has {n} tokens")
        if not 1 <= self.k <= n:
            raise MethodError(f"a view of {n} tokens cannot ask for {self.k}", hint="budget.py caps a budget per image")

    @property
    def n(self) -> int:
        """Number of tokens."""
        return len(self.x)

    @classmethod
    def on_grid(cls, x: Tensor, k: int, height: int, width: int, **more) -> View:
        """A view whose tokens fill one ``height`` x ``width`` grid in raster order."""
        if height * width != len(x):
            raise MethodError(f"{len(x)} tokens do not fill a {height} x {width} grid")
        index = torch.arange(len(x), device=x.device)
        return cls(x, k, row=index // width, col=index % width, **more)

    def need(self, name: str) -> Tensor:
        """The tensor of an extra.

        Raises:
            MethodError: if it was not collected, which means that the method's card does not list it.
        """
        if name not in self.extras:
            raise MethodError(f"the view carries no {name!r}", hint=f"list {name!r} under `needs` of the method's card")
        return self.extras[name].value

    def take(self, index: Tensor) -> View:
        """The view of some of its tokens, extras included, in the given order; k shrinks to them. index: (m,)."""
        extras = {}
        for name, extra in self.extras.items():
            extras[name] = replace(extra, value=_take_extra(name, extra.value, index))
        return replace(
            self,
            x=self.x[index],
            k=min(self.k, len(index)),
            kind=self.kind[index],
            tile=self.tile[index],
            t=self.t[index],
            row=self.row[index],
            col=self.col[index],
            size=self.size[index],
            marks={name: mark[index] for name, mark in self.marks.items()},
            extras=extras,
        )


# Extras that are aligned with the tokens, and along which axis.
TOKEN_AXIS = {"attention": -1, "early": -1, "value_attention": -1, "keys": 0, "values": 0, "pixels": 0, "relevance": 0}
TOKEN_AXIS |= {"last_row": -1, "text_rows": -1, "ahead_row": -1, "layer_keys": 0}


def _take_extra(name: str, value: Tensor, index: Tensor) -> Tensor:
    axis = TOKEN_AXIS.get(name)
    return value if axis is None else value.index_select(axis, index)


@dataclass(frozen=True)
class Reduction:
    """A reduction from n tokens to m slots, as data: it can be stored, composed, drawn and compared.

    ``slot[dst] += weight * token[src]`` over the edges, plus ``inserted``. A token may feed several slots, a slot may be
    a copy, a mean or a plain sum. ``anchor`` names the token that lends a slot its position and identity, whatever
    feeds it.

    Attributes:
        n: tokens before.
        src, dst: (e,) token and slot of each edge.
        weight: (e,) or None for all ones.
        anchor: (m,) distinct tokens, one per slot.
        inserted: (m, d) rows added to the slots, or None.
    """

    n: int
    src: Tensor
    dst: Tensor
    weight: Tensor | None
    anchor: Tensor
    inserted: Tensor | None = None

    @property
    def m(self) -> int:
        """Number of slots."""
        return len(self.anchor)

    @property
    def is_drop(self) -> bool:
        """True if slots are unchanged copies of their anchors (known without looking at the tensors' values)."""
        return self.weight is None and self.inserted is None and self.src is self.anchor

    @classmethod
    def drop(cls, kept: Tensor, n: int) -> Reduction:
        """Keep the tokens ``kept`` (m,), unchanged, in the order given."""
        return cls(n, kept, torch.arange(len(kept), device=kept.device), None, kept)

    @classmethod
    def identity(cls, n: int, device: torch.device | str = "cpu") -> Reduction:
        """Keep every token."""
        return cls.drop(torch.arange(n, device=device), n)

    @classmethod
    def nothing(cls, n: int, device: torch.device | str = "cpu") -> Reduction:
        """Keep no token: the picture leaves, which only a step between the language model's layers may say."""
        return cls.drop(torch.arange(0, device=device), n)

    @classmethod
    def groups(cls, assign: Tensor, anchor: Tensor, size: Tensor | None = None) -> Reduction:
        """Average groups of tokens.

        Args:
            assign: (n,) slot of every token, or -1 for tokens that feed none.
            anchor: (m,) token that lends each slot its place.
            size: (n,) weights of the average; equal when None.
        """
        src = (assign >= 0).nonzero()[:, 0]
        dst = assign[src]
        mass = torch.ones(len(src), device=assign.device) if size is None else size[src].float()
        total = torch.zeros(len(anchor), device=assign.device).index_add_(0, dst, mass)
        return cls(len(assign), src, dst, mass / total[dst], anchor)

    def check(self, empty: bool = False) -> Reduction:
        """Raise MethodError unless indices are in range, anchors distinct and weights finite; returns self.

        empty: whether it may keep no token.

        Shapes are looked at first; then everything that has to be read from the device is read at once.
        """
        m, e = self.m, len(self.src)
        fault = ""
        if m == 0 and empty and self.is_drop:
            return self
        if m == 0:
            fault = "keeps no token"
        elif m > self.n:
            fault = f"has {m} slots for {self.n} tokens"
        elif any(index.ndim != 1 or index.dtype != torch.long for index in (self.src, self.dst, self.anchor)):
            fault = "has indices that are not vectors of 64-bit integers"
        elif len(self.dst) != e or (self.weight is not None and self.weight.shape != (e,)):
            fault = "has edges of unequal length"
        elif self.inserted is not None and (self.inserted.ndim != 2 or len(self.inserted) != m):
            fault = f"inserts rows of shape {tuple(self.inserted.shape)} into {m} slots"
        if not fault:
            ordered = self.anchor.sort().values
            facts = [ordered[0], ordered[-1], (ordered[1:] == ordered[:-1]).any()]
            if self.is_drop:
                facts.append((self.dst != torch.arange(m, device=ordered.device)).any())
            elif e:
                facts += [self.src.min(), self.src.max(), self.dst.min(), self.dst.max()]
                facts += [] if self.weight is None else [(~torch.isfinite(self.weight)).any()]
            first, last, twice, *edges = torch.stack([fact.long() for fact in facts]).tolist()
            if first < 0 or last >= self.n:
                fault = f"has an anchor outside 0..{self.n - 1}"
            elif twice:
                fault = "uses one token as the anchor of two slots"
            elif self.is_drop:
                fault = "has its anchors as sources but sends them elsewhere" if edges[0] else ""
            elif e and (edges[0] < 0 or edges[1] >= self.n):
                fault = f"has an edge from outside 0..{self.n - 1}"
            elif e and (edges[2] < 0 or edges[3] >= m):
                fault = f"has an edge into a slot outside 0..{m - 1}"
            elif any(edges[4:]):
                fault = "has a weight that is not finite"
        if fault:
            raise MethodError(f"the reduction {fault}", hint="see the docstring of foveate.tokens.Reduction")
        return self

    def apply(self, x: Tensor) -> Tensor:
        """Reduce features (n, d) to (m, d). Sums run in float32 at least; the result has the dtype of ``x``."""
        if self.is_drop:
            return x.index_select(0, self.anchor)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        fed = wide.index_select(0, self.src)  # a fresh (e, d): written in place below, large ones are slow to allocate
        if self.weight is not None:
            fed.mul_(self.weight.to(fed.dtype)[:, None])
        out = torch.zeros(self.m, x.shape[1], dtype=fed.dtype, device=x.device).index_add_(0, self.dst, fed)
        if self.inserted is not None:
            out = out + self.inserted.to(out.dtype)
        return out.to(x.dtype)

    def sizes(self, size: Tensor) -> Tensor:
        """(m,) sum of the sizes (n,) that feed each slot."""
        if self.is_drop:
            return size.index_select(0, self.anchor)
        return torch.zeros(self.m, dtype=size.dtype, device=size.device).index_add(0, self.dst, size[self.src])

    def sorted(self) -> Reduction:
        """The same reduction with its slots in ascending order of their anchors."""
        order = self.anchor.argsort()
        if self.is_drop:
            return Reduction.drop(self.anchor[order], self.n)
        place = torch.empty_like(order)
        place[order] = torch.arange(self.m, device=order.device)
        inserted = None if self.inserted is None else self.inserted[order]
        return Reduction(self.n, self.src, place[self.dst], self.weight, self.anchor[order], inserted)

    def then(self, later: Reduction) -> Reduction:
        """This reduction followed by ``later`` (over this one's slots), as one. Sparse product of the edges."""
        if later.n != self.m:
            raise MethodError(f"cannot follow a reduction to {self.m} slots by one of {later.n} tokens")
        if self.is_drop and later.is_drop:
            return Reduction.drop(self.anchor[later.anchor], self.n)
        # Edges of `later` join the edges of `self` that end where they start.
        order = self.dst.argsort(stable=True)
        count = torch.bincount(self.dst, minlength=self.m)
        start = count.cumsum(0) - count
        fan = count[later.src]
        edge = torch.repeat_interleave(torch.arange(len(later.src), device=fan.device), fan)
        within = torch.arange(len(edge), device=fan.device) - (fan.cumsum(0) - fan)[edge]
        mine = order[start[later.src[edge]] + within]
        weight = None
        if self.weight is not None or later.weight is not None:
            first = torch.ones_like(mine, dtype=torch.float32) if self.weight is None else self.weight[mine]
            weight = first if later.weight is None else first * later.weight[edge].to(first.dtype)
        inserted = later.inserted
        if self.inserted is not None:
            moved = replace(later, inserted=None).apply(self.inserted)
            inserted = moved if inserted is None else moved + inserted
        return Reduction(self.n, self.src[mine], later.dst[edge], weight, self.anchor[later.anchor], inserted)

    def lift(self, index: Tensor, n: int, extra: Tensor) -> Reduction:
        """Carry a reduction of some tokens over to all of them.

        Args:
            index: (self.n,) place of this reduction's tokens among the n.
            n: number of all tokens.
            extra: (j,) further tokens to keep unchanged, none of them in ``index``.

        Returns:
            Reduction with self.m + j slots, ordered by anchor.
        """
        anchor = torch.cat([index[self.anchor], extra])
        if self.is_drop:
            return Reduction.drop(anchor.sort().values, n)
        more = torch.arange(len(extra), device=extra.device)
        weight = self.weight
        if weight is not None:
            weight = torch.cat([weight, weight.new_ones(len(extra))])
        inserted = self.inserted
        if inserted is not None:
            inserted = torch.cat([inserted, inserted.new_zeros(len(extra), inserted.shape[1])])
        src = torch.cat([index[self.src], extra])
        return Reduction(n, src, torch.cat([self.dst, self.m + more]), weight, anchor, inserted).sorted()
