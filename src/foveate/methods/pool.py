"""Average pooling of the token grid: the oldest way to have fewer tokens, and the one that loses nothing entirely.

What is odd: a grid has only so many sizes, so the count is the nearest grid within the budget, not the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..budget import share_out
from ..method import Card, Method
from ..parts.grid import fit, pool
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Pool(Method):
    """Pool each tile's tokens to a smaller grid of the same proportions, as adaptive average pooling does.

    The budget is split over the tiles by their tokens. Tokens may be missing from a tile's grid (cut off as padding, or
    dropped by an earlier step): a bin averages those it has, and a bin without any gives no slot.
    """

    card = Card(
        name="pool",
        title="Adaptive average pooling of the token grid (baseline)",
        count="grid",
    )

    def __call__(self, view: View) -> Reduction:
        places = torch.stack([view.t, view.tile], dim=1)  # each frame has its own tiles
        _, tile, sizes = places.unique(dim=0, return_inverse=True, return_counts=True)
        shares = _shares(view.k, sizes.tolist())
        src, dst, weight, anchor = [], [], [], []
        slots = 0
        for i, share in enumerate(shares):
            if not share:
                continue
            here = (tile == i).nonzero()[:, 0]
            row, col = view.row[here], view.col[here]
            up, down, left, right = torch.stack([row.min(), row.max(), col.min(), col.max()]).tolist()
            full = down - up + 1, right - left + 1  # cut-off padding does not count
            one = pool(row - up, col - left, full, fit(*full, share), view.size[here])
            assert one.weight is not None
            src.append(here[one.src])
            dst.append(one.dst + slots)
            weight.append(one.weight)
            anchor.append(here[one.anchor])
            slots += one.m
        return Reduction(view.n, torch.cat(src), torch.cat(dst), torch.cat(weight), torch.cat(anchor)).sorted()


def _shares(k: int, sizes: list[int]) -> list[int]:
    """Split k over tiles; with fewer slots than tiles, the largest tiles get one each (the first of equals)."""
    if k >= len(sizes):
        return share_out(k, sizes)
    chosen = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:k]
    return [int(i in chosen) for i in range(len(sizes))]
