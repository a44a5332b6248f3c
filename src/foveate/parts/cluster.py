"""Clusters of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .select import top


def density_peaks(x: Tensor, clusters: int, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Clusters around density peaks (DPC-KNN; Rodriguez and Laio 2014, Du et al. 2016).

    A centre is dense, exp(- mean squared distance to its nearest, itself included), and far from any denser token. The
    others join the nearest centre. Distances are Euclidean, divided by the root of d. Ties go to the lowest index.

    Args:
        x: (n, d).
        clusters: 1 <= c <= n.
        neighbours: k of the density, at most n.

    Returns:
        (n,) cluster of each token, and (c,) centres, ascending.
    """
    wide = x.float()
    far = torch.cdist(wide, wide).div_(x.shape[1] ** 0.5)  # (n, n)
    spread = far.topk(min(neighbours, len(x)), dim=1, largest=False).values.square().mean(1)
    rank = torch.empty_like(spread, dtype=torch.long)
    rank[spread.sort(stable=True).indices] = torch.arange(len(x), device=x.device)
    denser = rank[None, :] < rank[:, None]
    gap = torch.where(denser, far, torch.inf).amin(1)
    gap = torch.where(rank == 0, far.max(), gap)
    centre = top((-spread).exp() * gap, clusters)
    home = far[:, centre].argmin(1)
    home[centre] = torch.arange(clusters, device=x.device)
    return home, centre
