"""FoPru (arXiv:2411.14164): attention inside the tower says which tokens matter; keep the best tokens, or the best rows.

Significance of a token is the attention it has in the last tower layer that the model uses, averaged over heads. The
rank strategy keeps the most significant tokens wherever they lie; the row strategy keeps whole rows of the picture, so
that what stays hangs together.

What is odd: the row strategy throws away horizontal bands, objects that are cut by their edge included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.select import ranked, top
from ..parts.tiles import allocate
from ..tokens import Reduction, View

STRATEGIES = ("rank", "row")


@dataclass(frozen=True)
class FoPru(Method):
    """Keep the most significant tokens, or the most significant rows of tokens.

    Attributes:
        strategy: "rank" keeps single tokens, exactly as many as asked; "row" keeps complete rows, at most as many.
    """

    card = Card(
        name="fopru",
        title="FoPru: Focal Pruning for Efficient Large Vision-Language Models",
        paper="arXiv:2411.14164",
        features="before",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "The paper computes attention received and attention given by every token and takes the one that varies "
            "more. Here it is the CLS row, or attention received where there is no CLS: what a token gives adds up to "
            "almost the same for every token, and the whole map is never formed.",
            "Re-interpretation: with several tiles the row strategy gives each tile the same share of its tokens, to "
            "spend on its own rows.",
            "Re-interpretation: a budget that is smaller than every row keeps the best tokens of the best row.",
            "The row strategy counts by whole rows, so that fewer tokens than asked may stay.",
        ),
    )

    strategy: str = "rank"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy={self.strategy!r} is none of {', '.join(STRATEGIES)}")
        if self.strategy == "row":  # this one alone cannot promise an exact count
            object.__setattr__(self, "card", replace(self.card, count="grid"))

    def __call__(self, view: View) -> Reduction:
        score = view.need("attention").float().mean(0)  # (h, n) -> (n,)
        kept = top(score, view.k) if self.strategy == "rank" else self.rows(view, score)
        return Reduction.drop(kept, view.n)

    def rows(self, view: View, score: Tensor) -> Tensor:
        """(m,) tokens of the best rows, m <= k. score: (n,)."""
        place = torch.stack([view.tile, view.t, view.row], 1)
        rows, row = place.unique(dim=0, return_inverse=True)  # (r, 3), (n,)
        length = torch.bincount(row, minlength=len(rows))
        mean = torch.zeros(len(rows), device=score.device).index_add_(0, row, score) / length
        room = torch.bincount(view.tile).tolist()
        left = allocate(room, view.k, room)  # a row is taken while its tile can pay for it
        kept = torch.zeros(len(rows), dtype=torch.bool)
        order = ranked(mean)
        for i, tile, tokens in torch.stack([order, rows[order, 0], length[order]], 1).tolist():
            if tokens <= left[tile]:
                left[tile] -= tokens
                kept[i] = True
        if not kept.any():
            inside = (row == order[0]).nonzero()[:, 0]
            return inside[top(score[inside], view.k)]
        return kept.to(row.device)[row].nonzero()[:, 0]
