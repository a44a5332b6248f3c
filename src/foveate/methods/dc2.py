"""DC2 (arXiv:2408.15556), its merging step: a tree of patches in which similar siblings are one.

The picture is a tree: every square of four squares, down to single tokens. Inside a square the four parts are joined by
average linkage on cosines, the most similar first. Cutting all these joins at one height leaves the tokens asked for.

What is odd: neighbours are joined only inside their square, so that two like tokens on either side of a line between large
squares wait until both of these are whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.cluster import nearest_members
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DC2(Method):
    """Merge to k pieces of a tree of squares by average linkage."""

    card = Card(
        name="dc2",
        title="Divide, Conquer and Combine: A Training-Free Framework for High-Resolution Image Perception in MLLMs",
        paper="arXiv:2408.15556",
        code="https://github.com/DreamMr/HR-Bench",
        mechanism="similarity",
        differences=(
            "The tree and its merging, on tokens of a picture that was encoded once. The paper cuts the picture itself, "
            "encodes every patch, has the model describe the leaves and adds these captions to the prompt.",
            "Re-interpretation: the budget decides where joins are cut; the paper cuts at a cosine distance of 0.1.",
            "Re-interpretation: a join is never lower than those inside its parts, and squares are joined to larger ones only "
            "as a whole, so that a cut leaves pieces of the tree.",
            "The tiles of a picture are the squares of one more level, four at a time.",
        ),
    )

    def __call__(self, view: View) -> Reduction:
        if view.n == 1:
            return Reduction.identity(1, view.x.device)
        height, kept, gone = joins(view)
        first = height.sort(stable=True).indices[: view.n - view.k]
        home = torch.arange(view.n, device=view.x.device)
        home[gone[first]] = kept[first]  # each token is taken in once, by a lower one
        while not torch.equal(home, home[home]):
            home = home[home]
        _, slot = home.unique(return_inverse=True)
        mean = Reduction.groups(slot, home.unique(), view.size).apply(view.x.float())
        far = (view.x.float() - mean[slot]).square().sum(1)
        return Reduction.groups(slot, nearest_members(slot, far, view.k), view.size).sorted()


def joins(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Every join of the tree, lower levels first: its height (n - 1,), and the first token of the piece that takes in and of
    the piece that is taken in (n - 1,).
    """
    total = unit(view.x)[0]  # sums of unit rows: their products over both sizes are mean cosines
    count = torch.ones_like(total[:, 0])
    rise = torch.zeros_like(count)
    name = torch.arange(view.n, device=total.device)
    frame = view.t * (view.tile.max() + 1) + view.tile
    row, col = view.row, view.col
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(name) > 1:
        if not bool((row > 0).any() | (col > 0).any()):  # each frame is one piece: four of them make the next square
            row, col, frame = frame % 4 // 2, frame % 2, frame // 4
        place = torch.stack([frame, row // 2, col // 2], 1)
        _, square, filled = place.unique(dim=0, return_inverse=True, return_counts=True)
        order = square.argsort(stable=True)
        nth = torch.arange(len(order), device=order.device) - (filled.cumsum(0) - filled)[square[order]]
        cell = torch.full((len(filled), 4), -1, device=order.device)
        cell[square[order], nth] = order  # which pieces, -1 where there are fewer
        for _ in range(3):
            there = cell >= 0
            mean = total[cell.clamp(min=0)] / count[cell.clamp(min=0)][..., None]
            alike = mean @ mean.mT  # (squares, 4, 4)
            pair = (there[:, :, None] & there[:, None]).triu(1)
            best, which = alike.masked_fill(~pair, -torch.inf).flatten(1).max(1)
            some = (~best.isneginf()).nonzero()[:, 0]
            if not len(some):
                break
            a, b = cell[some, which[some] // 4], cell[some, which[some] % 4]
            rise[a] = torch.maximum((1 - best[some]), torch.maximum(rise[a], rise[b]))
            found.append((rise[a], name[a], name[b]))
            total[a], count[a] = total[a] + total[b], count[a] + count[b]
            cell[some, which[some] % 4] = -1
        whole = cell.amax(1)
        total, count, rise, name = total[whole], count[whole], rise[whole], name[whole]
        frame, row, col = frame[whole], row[whole] // 2, col[whole] // 2
    heights, kept, gone = (torch.cat(parts) for parts in zip(*found, strict=True))
    return heights, kept, gone
