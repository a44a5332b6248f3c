"""Grids of tokens: which smaller grid fits a budget, and which tokens fall into its bins."""

from __future__ import annotations

from math import log, sqrt

import torch
from torch import Tensor

from ..tokens import Reduction, View


def fit(height: int, width: int, k: int) -> tuple[int, int]:
    """The grid of at most k cells, no larger than ``height`` x ``width``, that is nearest to its shape.

    Nearest to the grid of exactly k cells with the same proportions, which is rarely whole: both sides are compared by
    the logarithm of their quotient. Of equals the one with more cells wins, then the wider, because text runs sideways.

    Args:
        height, width: of the full grid.
        k: cells to spend, >= 1.
    """
    scale = sqrt(min(1.0, k / (height * width)))

    def far(h: int, w: int) -> tuple[float, int, int]:
        return round(log(h / (height * scale)) ** 2 + log(w / (width * scale)) ** 2, 9), -h * w, -w

    ideal = int(width * scale)
    options = []
    for h in range(1, min(height, k) + 1):
        most = min(width, k // h)
        options += [(h, min(max(w, 1), most)) for w in (ideal, ideal + 1)]  # between these the distance only grows
    return min(options, key=lambda grid: far(*grid))


def bins(place: Tensor, full: int, fewer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bins along one axis, as adaptive average pooling has them: bin i covers floor(i f/g) to ceil((i+1) f/g) - 1.

    Args:
        place: (n,) row (or column) of each token, 0 <= place < full.
        full, fewer: f rows that become g <= f bins.

    Returns:
        (n,) the first and the last bin that a token falls into (neighbours share a row where the sizes do not divide),
        and (n,) its home: the one bin that holds the token's middle.
    """
    return place * fewer // full, ((place + 1) * fewer - 1) // full, (2 * place + 1) * fewer // (2 * full)


def pool(row: Tensor, col: Tensor, full: tuple[int, int], fewer: tuple[int, int], size: Tensor) -> Reduction:
    """Average pooling of tokens on a grid that may have gaps.

    A bin averages the tokens it has, weighted by size. Its anchor is the nearest to the bin's centre among the tokens
    at home in it, so that no token is the anchor of two bins; a bin that is home to none gives no slot.

    Args:
        row, col: (n,) place of each token in the full grid.
        full, fewer: (rows, columns) of the full grid and of the bins.
        size: (n,) weights of the mean.

    Returns:
        Reduction to at most ``fewer[0] * fewer[1]`` slots, in the order of their anchors.
    """
    n, (h, w) = len(row), fewer
    top, bottom, home_row = bins(row, full[0], h)
    left, right, home_col = bins(col, full[1], w)
    home = home_row * w + home_col  # (n,)

    def off_centre(place: Tensor, home: Tensor, full: int, fewer: int) -> Tensor:
        return ((2 * place + 1) * fewer - (2 * home + 1) * full).double() / (2 * fewer)  # in rows; exact up to here

    far = off_centre(row, home_row, full[0], h).square() + off_centre(col, home_col, full[1], w).square()
    order = far.argsort(stable=True)
    order = order[home[order].argsort(stable=True)]  # by bin, then distance, then index
    ordered = home[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    anchor = order[first]  # (m,)
    slot = torch.full((h * w,), -1, dtype=torch.long, device=row.device)
    slot[ordered[first]] = torch.arange(len(anchor), device=row.device)

    token = torch.arange(n, device=row.device)
    both_rows, both_cols = bottom > top, right > left
    edges = [(token, top * w + left)]
    for there, y, x in ((both_rows, bottom, left), (both_cols, top, right), (both_rows & both_cols, bottom, right)):
        edges.append((token[there], (y * w + x)[there]))
    src = torch.cat([s for s, _ in edges])
    dst = slot[torch.cat([b for _, b in edges])]
    src, dst = src[dst >= 0], dst[dst >= 0]
    mass = size.float()[src]
    total = torch.zeros(len(anchor), device=row.device).index_add(0, dst, mass)
    return Reduction(n, src, dst, mass / total[dst], anchor).sorted()


def windows(view: View, side: int) -> tuple[Tensor, Tensor]:
    """Windows of ``side`` x ``side`` places, inside each tile and frame.

    Returns:
        (n,) window of each token, and (w,) the middle one of each window's tokens in raster order. Windows are numbered
        in raster order; those without a token do not count.
    """
    place = torch.stack([view.t, view.tile, view.row // side, view.col // side], 1)
    _, home, count = place.unique(dim=0, return_inverse=True, return_counts=True)
    return home, home.argsort(stable=True)[count.cumsum(0) - count + count // 2]


def neighbours(view: View, window: int) -> Tensor:
    """(n, window^2) tokens in the square around each token, itself among them, within its tile; -1 where there is none.

    Args:
        view: its tile, row and col are read; gaps are no neighbours.
        window: side of the square, odd.
    """
    half, n = window // 2, view.n
    row, col = view.row - view.row.min() + half, view.col - view.col.min() + half
    shape = int(view.tile.max()) + 1, int(row.max()) + half + 1, int(col.max()) + half + 1
    place = torch.full(shape, -1, dtype=torch.long, device=row.device)
    place[view.tile, row, col] = torch.arange(n, device=row.device)
    step = torch.arange(-half, half + 1, device=row.device)
    down, right = (x.flatten() for x in torch.meshgrid(step, step, indexing="ij"))
    return place[view.tile[:, None], row[:, None] + down, col[:, None] + right]
