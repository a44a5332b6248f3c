"""Answers between the language model's layers that are not reductions: who runs, and what a layer does for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import MethodError

SEES = ("all", "itself", "nothing")


@dataclass(frozen=True)
class Route:
    """Which tokens the language model's layers work on from here; the others wait.

    A token that waits is seen by nobody, keeps the state in which it left, and may run again later. It is not lost, as
    one that a reduction drops.

    Attributes:
        n: tokens of the view, those that wait included.
        running: (r,) tokens that run, ascending; none is allowed.
    """

    n: int
    running: Tensor

    def check(self) -> Route:
        """Raise MethodError unless the tokens are in range and ascend; returns self."""
        r, fault = self.running, ""
        if r.ndim != 1 or r.dtype != torch.long:
            fault = "names its tokens by something other than a vector of 64-bit integers"
        elif len(r):
            first, last, disorder = torch.stack([r[0], r[-1], (r[1:] <= r[:-1]).any().long()]).tolist()
            if first < 0 or last >= self.n:
                fault = f"names a token outside 0..{self.n - 1}"
            elif disorder:
                fault = "names its tokens out of order, or twice"
        if fault:
            raise MethodError(f"the route {fault}", hint="see the docstring of foveate.routes.Route")
        return self


@dataclass(frozen=True)
class Work:
    """What one layer does for an image's tokens, where that is less than everything. The layers after it do everything.

    Attributes:
        sees: which of the image's tokens one of them attends to as a query: "all", as the model has it; "itself" alone, and
            nothing else; "nothing", so that attention adds nothing to it; or (n, s) tokens, -1 for none, beside all that is
            not of the image.
        hidden: (q, n) True where a row of the text after the image does not see a token of it; or None.
        heads: (j,) query heads that look at the image; in the others its tokens' weights count as zero after the softmax,
            and its own rows get nothing. None: all do. While decoding, too.
        feeds: whether its tokens go through the feed-forward network.
    """

    sees: str | Tensor = "all"
    hidden: Tensor | None = None
    heads: Tensor | None = None
    feeds: bool = True

    @property
    def attends(self) -> bool:
        """Whether attention is as the model has it."""
        return isinstance(self.sees, str) and self.sees == "all" and self.hidden is None and self.heads is None

    def check(self, n: int) -> Work:
        """Raise MethodError unless it fits an image of n tokens; returns self."""
        fault, sees = "", self.sees
        if isinstance(sees, str) and sees not in SEES:
            fault = f"sees {sees!r}, not {', '.join(SEES)} or a tensor"
        elif isinstance(sees, Tensor) and (sees.ndim != 2 or len(sees) != n or sees.dtype != torch.long):
            fault = f"sees tokens of shape {tuple(sees.shape)}, for an image of {n}"
        elif isinstance(sees, Tensor) and sees.numel() and not -1 <= int(sees.min()) <= int(sees.max()) < n:
            fault = f"sees tokens outside 0..{n - 1}"
        elif self.hidden is not None and (self.hidden.dtype != torch.bool or self.hidden.shape[-1] != n):
            fault = f"hides {tuple(self.hidden.shape)} of {self.hidden.dtype}, for an image of {n}"
        elif self.heads is not None and (self.heads.dtype != torch.long or self.heads.ndim != 1):
            fault = f"names its heads by {tuple(self.heads.shape)} of {self.heads.dtype}, not (j,) 64-bit integers"
        if fault:
            raise MethodError(f"the work {fault}", hint="see the docstring of foveate.routes.Work")
        return self
