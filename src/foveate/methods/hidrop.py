"""HiDrop (arXiv:2602.23699): the picture comes in late, thins out fast and leaves early.

The first layers work on text alone: visual states hardly change there. Then all visual tokens come in as they left the
connector. After some of the middle layers the last prompt token's attention ranks them and the best go on, with a large cut
first and smaller ones later. Before the last layers all leave.

What is odd: a token that came in at the ninth layer was seen by none before, and has its place in the prompt all along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, LayerMethod
from ..parts.pace import before, bisect, check_spots
from ..parts.select import top
from ..routes import Route
from ..tokens import Reduction, View


@dataclass(frozen=True)
class HiDrop(LayerMethod):
    """Visual tokens run in a window of layers only, and in it fewer and fewer.

    ``keep`` is the mean over all layers, those without a picture included. Layers may be shares of the depth below 1.0.

    Attributes:
        inject: the first layer that sees the picture; 0 is the first of all.
        filters: the first layer after each filter; those outside of the window are left out.
        exit: the first layer that no longer sees the picture.
        shares: of the tokens that entered, left by each filter, never rising; a plan may then leave out ``keep``, and a budget
            other than 1.0, which turns the method off, changes nothing. Without, every filter leaves the same share, so that
            the mean is the budget's.
    """

    card = Card(
        name="hidrop",
        title="HiDrop: Hierarchical Vision Token Reduction in MLLMs via Late Injection, Concave Pyramid Pruning, and Early "
        "Exit",
        paper="arXiv:2602.23699",
        code="https://github.com/EIT-NLP/HiDrop",
        licence="",
        stages=("layers",),
        needs=("last_row",),
        guidance="question",
        budget="mean",
        positions="original",
        mechanism="attention",
        differences=(
            "The paper trains the model with these layers, and learns what each filter leaves through a soft ranking; here "
            "nothing is trained.",
            "Re-interpretation: each filter leaves the same share, found by bisection for the mean that is asked, and at least "
            "one token; the paper's counts were not found.",
            "The mean cannot exceed the window's share of the depth, half by default: where more is asked, filters keep all. "
            "Nor can it be less than what all tokens before the first filter and one behind each come to.",
            "Re-interpretation: a filter acts after its layer, and the next one is the first with fewer.",
            "The default layers are those of the 7B model, as shares of 32. The paper finds them on the model: where visual "
            "states change least, where hiding them costs nothing, and where rankings are stable.",
            "Of several turns the last token of the last one ranks.",
        ),
    )

    inject: float = 0.25
    filters: tuple[float, ...] = (0.3125, 0.4375, 0.5, 0.5625)
    exit: float = 0.75
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_spots("inject", self.inject)
        check_spots("filters", self.filters)
        check_spots("exit", self.exit)
        if isinstance(self.inject, int) == isinstance(self.exit, int) and self.inject >= self.exit:
            raise ValueError(f"exit={self.exit} is not after inject={self.inject}")
        shares = self.shares
        if not isinstance(shares, tuple) or any(isinstance(s, bool) or not isinstance(s, (int, float)) for s in shares):
            raise ValueError(f"shares={shares!r} are not numbers")
        if shares and (len(shares) != len(self.filters) or not 0 < shares[-1] <= shares[0] <= 1):
            raise ValueError(f"shares={shares!r} are not {len(self.filters)} numbers above 0, 1 at most")
        if list(shares) != sorted(shares, reverse=True):
            raise ValueError(f"shares={shares!r} rise")

    @property
    def settled(self) -> bool:
        return bool(self.shares)

    def window(self, depth: int) -> tuple[int, list[int], int]:
        """The first layer with the picture, the first after each filter, and the first without."""
        inject, end = before((self.inject,), depth, 0)[0], before((self.exit,), depth)[0]
        end = max(end, inject + 1)
        return inject, [layer for layer in before(self.filters, depth) if inject < layer < end], end

    def stops(self, depth: int) -> Sequence[int]:
        inject, filters, end = self.window(depth)
        return sorted({0, inject, *filters, *([end] if end < depth else [])})

    def looks(self, layer: int, depth: int) -> bool:
        return layer in self.window(depth)[1]

    def counts(self, n: int, k: int, depth: int) -> list[int]:
        """Tokens that each filter leaves. n: those that entered; k: the mean over all layers that is asked."""
        inject, filters, end = self.window(depth)
        if self.shares:
            last = {before((spot,), depth)[0]: share for spot, share in zip(self.filters, self.shares, strict=True)}
            return [max(1, nearest(last[layer] * n)) for layer in filters]
        widths = [stop - start for start, stop in zip([inject, *filters], [*filters, end], strict=True)]

        def total(share: float) -> float:
            return sum(width * n * share**i for i, width in enumerate(widths))

        share = bisect(total, k * depth, 0.0, 1.0)
        return [max(1, nearest(n * share ** (i + 1))) for i in range(len(filters))]

    def score(self, view: View) -> Tensor:
        """(n,) attention of the last prompt token."""
        return view.need("last_row").float().mean(0)

    def __call__(self, view: View) -> Reduction | Route | None:
        n, device = view.n, view.x.device
        inject, filters, end = self.window(max(1, view.depth))
        if view.layer == inject:
            return Route(n, torch.arange(n, device=device)) if inject else None
        if view.layer == 0:
            return Route(n, torch.arange(0, device=device))
        if view.layer == end:
            return Reduction.nothing(n, device)
        m = view.k
        if view.layer in filters:
            m = self.counts(view.entered or n, view.k, view.depth)[filters.index(view.layer)]
        return Reduction.drop(top(self.score(view), m), n)
