"""GlobalCom2 (arXiv:2501.05179): the overview of a picture tells its tiles how much they may keep, and what.

Each tile gets a ratio of its own: more where the overview's CLS token attends more. Inside a tile a token counts by its
own attention and by the overview's at the same spot, because a tile alone does not know what the picture is about. The
overview itself keeps its share by its own attention.

What is odd: the ratio grows with the *sum* of attention logits over a part of the overview, at a temperature of 10.
Sums over a hundred tokens are large, so that often one tile gets a bonus and all others lose the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..method import Card, Method
from ..parts.select import top_within
from ..parts.tiles import allocate, boxes, centres, overview
from ..tokens import Reduction, View


@dataclass(frozen=True)
class GlobalCom2(Method):
    """Share the budget among tiles by the overview's attention, spend it by the tile's and the overview's together.

    Attributes:
        temperature: of the softmax over tiles; larger shares the budget more evenly.
    """

    card = Card(
        name="globalcom2",
        title="Compression with Global Guidance: Towards Training-free High-Resolution MLLMs Acceleration",
        paper="arXiv:2501.05179",
        code="https://github.com/xuyang-liu16/GlobalCom2",
        licence="Apache-2.0",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "Scores are the logarithm of attention averaged over heads: the authors' logits, but for a constant per "
            "picture. Before they are summed their mean is taken off, so that the constant does not matter.",
            "Scores come from the layer whose features the model uses; the authors take the last one.",
            "Tile budgets add up to the budget exactly (largest remainder); in the authors' code they are rounded down "
            "and their sum varies.",
            "The part of the overview that guides a tile is the part that shows the same of the picture, padding left "
            "out; for the budgets the authors cut the overview into equal blocks. The two differ where padding makes "
            "the outer tiles show less.",
            "Kept tokens stay where they were. The authors' code writes tokens of a padded tile back at the wrong "
            "place, and puts out the overview in order of score.",
            "A picture without tiles, or without an overview, keeps the tokens with the highest scores.",
            "Towers without a CLS token: attention is what a token receives on average.",
        ),
    )

    temperature: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} is not a number above 0")

    def budgets(self, view: View) -> list[int]:
        """(g,) tokens to keep in each tile; they add up to ``view.k``."""
        return self._plan(view)[0]

    def __call__(self, view: View) -> Reduction:
        budgets, score = self._plan(view)
        group = view.tile if len(budgets) > 1 else torch.zeros_like(view.tile)
        return Reduction.drop(top_within(score, group, torch.tensor(budgets, device=score.device)), view.n)

    def _plan(self, view: View) -> tuple[list[int], Tensor]:
        """Budgets (g,) and scores (n,); a single budget where there is no overview, or nothing but it."""
        attention = view.need("attention").float().clamp(min=torch.finfo(torch.float32).tiny)
        logit = attention.log().mean(0)  # (h, n) -> (n,)
        box = boxes(view)
        room = torch.bincount(view.tile, minlength=len(box)).tolist()
        whole = overview(box)
        if whole is None or room[whole] in (0, view.n) or bool(logit.isnan().any()):  # NaN is refused by the ranking
            return [view.k], logit
        mine, at = view.tile == whole, centres(view, box, whole)

        # How much: the overview's logits, summed over the part that each tile shows, decide each tile's ratio.
        middle = at[mine, None]  # (o, 1, 2)
        inside = ((middle >= box[:, :2]) & (middle < box[:, 2:])).all(2)  # (o, g)
        total = inside.mT.float() @ (logit[mine] - logit[mine].mean())  # (g,)
        tiles = [i for i in range(len(room)) if i != whole]
        bonus = (total[tiles] / self.temperature).softmax(0)
        ratio = (1 + bonus - bonus.mean()).tolist()
        others = view.n - room[whole]
        full = max(room[whole] * view.k // view.n, view.k - others)
        given = allocate(
            [room[i] * r for i, r in zip(tiles, ratio, strict=True)], view.k - full, [room[i] for i in tiles]
        )
        given.insert(whole, full)

        # Which: in a tile, its own logit and the overview's at the same spot, each scaled to length one over the tile.
        guide = _sample(logit, view.row, view.col, mine, at)
        score = _unit(logit, view.tile) + _unit(guide, view.tile)
        return given, torch.where(mine, logit, score)


def _sample(value: Tensor, row: Tensor, col: Tensor, mine: Tensor, at: Tensor) -> Tensor:
    """(n,) the overview's values between its tokens, bilinear; a gap holds their mean. value: (n,), at: (n, 2)."""
    grid = value[mine].mean().expand(int(row[mine].max()) + 1, int(col[mine].max()) + 1).clone()
    grid[row[mine], col[mine]] = value[mine]
    spot = (2 * at - 1).to(grid.dtype)[None, None]  # (1, 1, n, 2): edges of the overview are at -1 and 1
    return functional.grid_sample(grid[None, None], spot, padding_mode="border", align_corners=False)[0, 0, 0]


def _unit(value: Tensor, group: Tensor) -> Tensor:
    """(n,) values over the length of the vector that those of the same group make; zeros stay."""
    square = torch.zeros(int(group.max()) + 1, device=value.device).index_add_(0, group, value.square())
    return value / square.sqrt().clamp(min=torch.finfo(torch.float32).tiny)[group]
