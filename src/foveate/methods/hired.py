"""HiRED (arXiv:2408.10945): a fixed budget for a picture in tiles, most of it where the overview sees something.

An early layer of the tower attends to what stands out; where its best tokens lie in the overview decides how the budget
is shared among the tiles. Inside each tile the last layer used by the model decides which tokens stay.

What is odd: the overview first takes its share (half by default), whatever it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..method import Card, Method
from ..parts.select import top, top_within
from ..parts.tiles import allocate, boxes, centres, overview
from ..tokens import Reduction, View


@dataclass(frozen=True)
class HiRED(Method):
    """Share the budget among tiles by early attention in the overview, spend it by late attention in each.

    Attributes:
        alpha: share of the budget that the overview gets, in [0, 1]. The rest of the overview's tokens, its best
            1 - alpha by early attention, vote for the tiles; a larger value means fewer votes and smaller tiles.
        early: the layer that votes, as a share of the tower's depth in [0, 1). The first by default.
    """

    card = Card(
        name="hired",
        title="HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models "
        "in Resource-Constrained Environments",
        paper="arXiv:2408.10945",
        code="https://github.com/hasanar1f/HiRED",
        licence="MIT",
        features="before",
        needs=("attention", "early"),
        mechanism="attention",
        differences=(
            "A vote counts for the tile that shows the same part of the picture. The authors' code cuts the overview "
            "into strips of raster order, so that with two tiles side by side both halves vote for both.",
            "Tile budgets add up to the budget exactly (largest remainder); in the authors' code rounding loses some.",
            "What the overview or a full tile cannot take goes to the other tiles, and back.",
            "Re-interpretation: without any vote (alpha=1) tiles share by size.",
            "Newline tokens stay structure; the authors' code switches them off.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    alpha: float = 0.5
    early: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not a share in [0, 1]")
        if not 0 <= self.early < 1:
            raise ValueError(f"early={self.early} is not a share of the tower's depth in [0, 1)")

    def budgets(self, view: View) -> list[int]:
        """(g,) tokens to keep in each tile; they add up to ``view.k``."""
        box = boxes(view)
        room = torch.bincount(view.tile, minlength=len(box)).tolist()
        whole = overview(box)
        if len(room) == 1 or whole is None:
            return allocate(room, view.k, room)
        others = sum(room) - room[whole]
        full = min(math.floor(self.alpha * view.k + 1e-9), room[whole])
        full = max(full, view.k - others)

        early = view.need("early").float().sum(0)  # (h, n) -> (n,)
        mine = (view.tile == whole).nonzero()[:, 0]
        voters = mine[top(early[mine], math.floor((1 - self.alpha) * len(mine) + 1e-9))]
        at = centres(view, box, whole)[voters, None]  # (v, 1, 2)
        votes = ((at >= box[:, :2]) & (at < box[:, 2:])).all(2).sum(0).tolist()  # (v, g, 2) -> (g,)
        spare = [0 if i == whole else r for i, r in enumerate(room)]
        given = allocate(votes, view.k - full, spare)
        given[whole] = full
        return given

    def __call__(self, view: View) -> Reduction:
        late = view.need("attention").float().sum(0)  # (h, n) -> (n,)
        budgets = torch.tensor(self.budgets(view), device=view.x.device)
        return Reduction.drop(top_within(late, view.tile, budgets), view.n)
