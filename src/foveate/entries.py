"""The waist at the cache: what a method of the cache sees (:class:`Entries`) and what it answers (:class:`Eviction`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import MethodError
from .tokens import Extra


@dataclass(frozen=True)
class Entries:
    """What a method of the cache sees: keys and values that one layer stored of one prompt. No padding, no batch.

    Attributes:
        keys, values: (h, n, c) of the h key heads; keys are rotated already.
        kind: (n,) :class:`Kind`; text is ``Kind.TEXT``.
        number: (n,) which of the prompt's columns each entry is, ascending.
        left: (n,) whether the column ran in the language model's last layer.
        k: entries to keep of each head.
        layer, depth: of the language model.
        extras: attention of the g query heads that share each key head, where the card asks for it, all over the entries:
            "window_rows" (h, g, q, n) of the last ``window`` prompt tokens, "text_rows" (h, g, q, n) of the text after the
            last image, "received" (h, g, n) added up over all queries.
    """

    keys: Tensor
    values: Tensor
    kind: Tensor
    number: Tensor
    left: Tensor
    k: int
    layer: int = 0
    depth: int = 1
    extras: Mapping[str, Extra] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of entries of a head."""
        return self.keys.shape[1]

    def need(self, name: str) -> Tensor:
        """The tensor of an extra.

        Raises:
            MethodError: if it was not collected, which means that the method's card does not list it.
        """
        if name not in self.extras:
            raise MethodError(
                f"the entries come without {name!r}", hint=f"list {name!r} under `needs` of the method's card"
            )
        return self.extras[name].value


@dataclass(frozen=True)
class Eviction:
    """What stays of a layer's entries, head by head, and what goes into it.

    Attributes:
        n: entries before.
        kept: (h, m) entries that stay, ascending.
        slot: (h, n) slot in 0..m-1 that an entry feeds, or -1; None where the kept ones stay as they are. A kept entry
            feeds its own.
        weight: (h, n) of each entry in its slot.
    """

    n: int
    kept: Tensor
    slot: Tensor | None = None
    weight: Tensor | None = None

    @property
    def m(self) -> int:
        """Entries of a head that are left."""
        return self.kept.shape[1]

    @property
    def whole(self) -> bool:
        """Whether every entry stays as it is."""
        return self.m == self.n and self.slot is None

    def check(self) -> Eviction:
        """Raise MethodError unless what is kept is in range and ascends, and what is merged goes into it; returns self."""
        kept, fault = self.kept, ""
        if kept.ndim != 2 or kept.dtype != torch.long or not kept.shape[1]:
            fault = f"keeps {tuple(kept.shape)} entries of {kept.dtype}, not (heads, 1 or more) of 64-bit integers"
        elif int(kept.min()) < 0 or int(kept.max()) >= self.n or bool((kept[:, 1:] <= kept[:, :-1]).any()):
            fault = f"keeps entries outside 0..{self.n - 1}, or out of order"
        elif (self.slot is None) != (self.weight is None):
            fault = "has slots without weights, or weights without slots"
        elif self.slot is not None and self.weight is not None:
            if self.slot.shape != (len(kept), self.n) or self.weight.shape != self.slot.shape:
                fault = f"has slots of shape {tuple(self.slot.shape)}"
            elif int(self.slot.max()) >= self.m or not bool(self.weight.isfinite().all()):
                fault = "sends entries to slots that are not there, or with weights that are not finite"
        if fault:
            raise MethodError(f"the eviction {fault}", hint="see the docstring of foveate.entries.Eviction")
        return self

    def apply(self, x: Tensor) -> Tensor:
        """Keys or values (h, n, c) to (h, m, c). Sums run in float32 at least."""
        if self.slot is None or self.weight is None:
            return x.gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1]))
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        goes = self.slot >= 0
        fed = wide * (self.weight * goes).to(wide.dtype)[..., None]
        out = wide.new_zeros(len(x), self.m, x.shape[-1])
        return out.scatter_add_(1, self.slot.clamp(min=0)[..., None].expand_as(fed), fed).to(x.dtype)


@dataclass(frozen=True)
class Thinned:
    """What stays of one layer's entries of one prompt.

    Attributes:
        sample, layer: which prompt and which decoder layer.
        number: (n,) the prompt's columns that the layer had stored.
        eviction: over them.
    """

    sample: int
    layer: int
    number: Tensor
    eviction: Eviction
