"""Clusters of tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import greedy
from .select import top
from .similarity import BLOCK, gram, unit

STRIP = 64  # rows of an n x n matrix that are worked on at a time
AHEAD = 16  # rows of a product that are made at a time: enough for the library to round as in the whole product


def density_peaks(x: Tensor, clusters: int, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Clusters around density peaks (DPC-KNN; Rodriguez and Laio 2014, Du et al. 2016).

    A centre is dense, exp(- mean squared distance to its nearest, itself included), and far from any denser token. The
    others join the nearest centre. Distances are Euclidean, divided by the root of d. Ties go to the lowest index.
    The product of the two is compared by its logarithm, which does not become zero where tokens are far apart.

    Args:
        x: (n, d).
        clusters: 1 <= c <= n.
        neighbours: k of the density, at most n.

    Returns:
        (n,) cluster of each token, and (c,) centres, ascending.
    """
    wide, n = x.float(), len(x)
    square = wide.square().sum(1)
    far = gram(wide)  # squared distances, in strips that stay in the processor's cache
    spread = wide.new_empty(n)
    for start in range(0, n, STRIP):
        some = far[start : start + STRIP]
        some.mul_(-2).add_(square[start : start + STRIP, None]).add_(square).clamp_(min=0).diagonal(start).zero_()
        spread[start : start + STRIP] = _smallest(some, min(neighbours, n)).mean(1)
    spread = spread / x.shape[1]
    order = spread.sort(stable=True).indices  # the densest first
    gap = torch.empty_like(spread)
    for start in range(0, n, STRIP):  # of each row, only columns of denser tokens
        rows = order[start : start + STRIP]
        some = far.index_select(0, rows).index_select(1, order[: start + len(rows)])
        some[:, start:].masked_fill_(torch.ones_like(some[:, start:], dtype=torch.bool).triu(), torch.inf)
        gap[rows] = some.amin(1)
    gap[order[0]] = far.amax()
    centre = top(gap.log() / 2 - spread, clusters)
    home = far.index_select(0, centre).argmin(0)
    home[centre] = torch.arange(clusters, device=x.device)
    return home, centre


def _smallest(x: Tensor, k: int) -> Tensor:
    """(r, k) the smallest values of each row (r, n), ascending."""
    if not x.is_cpu or x.requires_grad:
        return x.topk(k, dim=1, largest=False).values
    return torch.from_numpy(np.sort(np.partition(x.numpy(), k - 1, axis=1)[:, :k], axis=1))  # as torch, but quicker


def farthest_points(x: Tensor, first: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Clusters around tokens far from one another (Gonzalez 1985): a start for :func:`kmeans`.

    Every pick is farthest, in Euclidean distance, from the nearest one before it; the others join the nearest pick. Ties
    go to the lowest index. One (n, n) product at most, then O(n) per pick. For a few clusters a CPU makes only rows that
    picks ask for, and with them those of the tokens that are farthest at the time, which are likely to be picked next.

    Args:
        x: (n, d) in float32 at least.
        first: (1,) index to begin with.
        clusters: 1 <= c <= n.

    Returns:
        (n,) cluster of each token, and (c,) the picks in their order.
    """
    x = x.detach()
    square = x.square().sum(1)
    if x.is_cpu and len(x) >= max(2 * BLOCK, 4 * clusters):  # else half of the whole product is less work
        centre, near = _farthest_on_cpu(x, square, first, clusters)  # (c, n)
        near.mul_(2).sub_(square).sub_(square[centre, None]).clamp_(max=0).scatter_(1, centre[:, None], 0)
        home = near.argmax(0)
    else:
        near = gram(x).mul_(2).sub_(square[:, None]).sub_(square).clamp_(max=0).fill_diagonal_(0)  # - squared distance
        centre = greedy.apart(near, first, clusters, total=False)
        home = near.index_select(1, centre).argmax(1)
    home[centre] = torch.arange(clusters, device=x.device)  # copies of one another included
    return home, centre


def _farthest_on_cpu(x: Tensor, square: Tensor, first: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(c,) the picks of :func:`farthest_points`, and (c, n) their products with all tokens. Through NumPy, as in greedy."""
    squares = square.numpy()
    made: dict[int, np.ndarray] = {}  # rows of the product
    load = -squares  # (n,) less for farther tokens; before the first pick, for long ones
    left = np.ones(len(x), dtype=bool)  # rows not made
    one, picked = int(first), list[int]()
    for _ in range(clusters):
        if one not in made:
            order = np.where(left, load, np.inf)
            order[one] = -np.inf
            tokens = order.argpartition(AHEAD - 1)[:AHEAD]
            left[tokens] = False
            made.update(zip(tokens.tolist(), (x[torch.from_numpy(tokens)] @ x.mT).numpy(), strict=True))
        near = np.minimum(2 * made[one] - squares[one] - squares, 0)  # (n,) - squared distance
        load = np.maximum(load, near) if picked else near
        load[one] = np.inf  # never again
        picked.append(one)
        one = int(load.argmin())
    return torch.tensor(picked), torch.from_numpy(np.stack([made[one] for one in picked]))


def kmeans(x: Tensor, home: Tensor, clusters: int, rounds: int, spherical: bool = False) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means from a given assignment. Every cluster keeps a member; ties go to the lowest index.

    A round moves centres to the means of their members and tokens to the nearest centre: one (n, c) product, and on a CPU
    only its columns of centres that have moved. A centre that loses all its tokens gets the token farthest from its own
    centre, which may not be the last near to that one.

    Args:
        x: (n, d) in float32 at least.
        home: (n,) cluster of each token at the start, every one with a member.
        clusters: 1 <= c <= n.
        rounds: at most; it ends earlier when nothing moves.
        spherical: bring centres to length one. With x of length one this is k-means by cosine.

    Returns:
        (n,) cluster of each token, and (c,) the member nearest to each centre.
    """
    x = x.detach()
    square = x.square().sum(1)
    centre = _means(x, home, clusters, spherical)
    product = x @ centre.mT  # (n, c)
    for _ in range(rounds):
        best = (product - centre.square().sum(1) / 2).max(1)
        new = _none_empty(best.indices, square - 2 * best.values, clusters)
        if torch.equal(new, home):
            break
        home, old, centre = new, centre, _means(x, new, clusters, spherical)
        if x.is_cpu and clusters > AHEAD:
            moved = (centre != old).any(1)
            moved = moved.sort(descending=True, stable=True).indices[: max(AHEAD, int(moved.sum()))]
            product.index_copy_(1, moved, x @ centre[moved].mT)
        else:
            product = x @ centre.mT
    far = (x - centre.index_select(0, home)).square_().sum(1)
    return home, nearest_members(home, far, clusters)


def _means(x: Tensor, home: Tensor, clusters: int, spherical: bool) -> Tensor:
    """(c, d) mean of each cluster; an embedding bag sums in the same order on every run, also on a GPU."""
    count = torch.bincount(home, minlength=clusters)
    order = home.argsort(stable=True)
    total = torch.nn.functional.embedding_bag(order, x, count.cumsum(0) - count, mode="sum")
    return unit(total)[0] if spherical else total / count[:, None]


def nearest_members(home: Tensor, far: Tensor, clusters: int) -> Tensor:
    """(c,) of each cluster the member with the smallest ``far`` (n,); any token for an empty one."""
    order = far.argsort(stable=True)
    order = order[home[order].argsort(stable=True)]  # by cluster, then distance, then index
    count = torch.bincount(home, minlength=clusters)
    return order[(count.cumsum(0) - count).clamp(max=len(home) - 1)]


def _none_empty(home: Tensor, far: Tensor, clusters: int) -> Tensor:
    """(n,) the same clusters, but empty ones take the tokens with the largest ``far`` (n,); no other is emptied."""
    full = torch.bincount(home, minlength=clusters) > 0
    empty = (~full).nonzero()[:, 0]
    if not len(empty):
        return home
    stays = nearest_members(home, far, clusters)[full]
    moved = far.index_fill(0, stays, -torch.inf).sort(descending=True, stable=True).indices[: len(empty)]
    return home.index_copy(0, moved, empty)
