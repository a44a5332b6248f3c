"""HoloV (arXiv:2510.02912): do not only chase what is highlighted; every part of the picture gets tokens to its worth.

The picture is cut into crops, runs of tokens in raster order. A crop is worth its mean attention plus a little for the
variety of its tokens, and gets a quota in proportion. In a crop the tokens with the highest attention
stay.

What is odd: variety is first scaled to the crop's own mean attention. Its mean over the crop is then that attention
again, whatever the variety was, and every crop whose tokens are not all orthogonal is raised by the same nine per cent:
attention alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.select import ranked, top_within
from ..parts.similarity import unit
from ..parts.tiles import allocate
from ..tokens import Reduction, View


@dataclass(frozen=True)
class HoloV(Method):
    """Give each crop a quota by attention and variety, keep its highest attention.

    Attributes:
        crops: number of crops; more spread the tokens more evenly where attention is even.
        variety: weight of variety beside attention, >= 0; see what is odd about it.
    """

    card = Card(
        name="holov",
        title='Don\'t Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention',
        paper="arXiv:2510.02912",
        code="https://github.com/obananas/HoloV",
        licence="Apache-2.0",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "Re-interpretation: what a full crop cannot take goes to the others in proportion to their worth. The "
            "authors' code fills up with zero vectors, so that fewer tokens than asked hold anything.",
            "A crop of one token is worth its attention on the same scale as the others, not a thousandth of it.",
            "Tokens stay in the picture's order; the authors' code sorts them by crop and attention.",
            "Crops are runs of tokens over the whole image, tiles included, as in the authors' code.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    crops: int = 16
    variety: float = 0.09

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise ValueError(f"crops={self.crops} is not a number of crops, 1 or more")
        if not 0 <= self.variety < float("inf"):
            raise ValueError(f"variety={self.variety} is not a number, 0 or more")

    def worth(self, attention: Tensor, x: Tensor) -> list[float]:
        """Of each crop: mean attention, plus `variety` times mean variety at attention's scale. (n,), (n, d)."""
        direction, _ = unit(x)
        parts = min(self.crops, len(x))
        found = []
        for a, rows in zip((1000 * attention).tensor_split(parts), direction.tensor_split(parts), strict=True):
            spread = torch.zeros_like(a)
            if len(a) > 1:
                likeness = (rows @ rows.mT).fill_diagonal_(0)
                mean = likeness.sum(1, keepdim=True) / (len(a) - 1)
                spread = (likeness - mean).square().sum(1) / (len(a) - 1)
            scaled = spread * a.abs().mean() / (spread.abs().mean() + 1e-6)
            found.append((a + self.variety * scaled).mean())
        return torch.stack(found).tolist()

    def __call__(self, view: View) -> Reduction:
        attention = view.need("attention").float().mean(0)  # (h, n) -> (n,)
        ranked(attention)  # refuses NaN, which no quota could be made of
        worth = self.worth(attention, view.x)
        index = torch.arange(view.n, device=view.x.device)
        sizes = [len(part) for part in index.tensor_split(len(worth))]
        quota = torch.tensor(allocate(worth, view.k, sizes, first=worth), device=index.device)
        crop = torch.repeat_interleave(
            torch.arange(len(sizes), device=index.device), torch.tensor(sizes).to(index.device)
        )
        return Reduction.drop(top_within(attention, crop, quota), view.n)
