"""ApET (arXiv:2602.19870), its stage before the language model: keep what a few tokens cannot explain.

A handful of basis tokens, far from each other, rebuild all tokens by least squares. Where that fails there is something of
its own, and the token stays; the others are averaged into the most similar token that stays. No attention, no question.

What is odd: the basis stays too, though its own error is next to nothing: those tokens are what the others are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.greedy import farthest
from ..parts.select import ranked
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class ApET(Method):
    """Keep a basis and the tokens with the largest approximation error, average the others into these.

    Attributes:
        basis: tokens that rebuild the others, 1 or more; of a small budget at most all but one. More leaves smaller errors.
        overwrite: put the basis in the place of the kept tokens with the smallest errors, and average the basis into the
            others as well, as the authors' code does.
    """

    card = Card(
        name="apet",
        title="ApET: Approximation-Error Guided Token Compression for Efficient VLMs",
        paper="arXiv:2602.19870",
        code="https://github.com/MaQianKun0/ApET",
        licence="",
        features="before",
        mechanism="reconstruction",
        differences=(
            "The stage before the language model only.",
            "The basis begins with the token farthest from the mean; the authors' begins with a random one.",
            "The basis stands at its own places, and counts once. The authors' code overwrites kept tokens with it, which "
            "are lost, and averages it into others too; the option `overwrite` does the same.",
            "Errors and means are computed in float32, the small system in float64; the authors round to half precision.",
            "Where the connector does not map token by token, the reduction is applied to features after it.",
        ),
    )

    basis: int = 10
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.basis < 1:
            raise ValueError(f"basis={self.basis} is not a number of tokens, 1 or more")

    def chosen(self, view: View) -> Tensor:
        """(b,) the basis, in the order it is picked."""
        x = view.x.float()
        first = (x - x.mean(0)).square().sum(1).argmax(0, keepdim=True)
        return farthest(x, first, min(self.basis, view.k - 1)) if view.k > 1 else first[:0]

    @staticmethod
    def errors(x: Tensor, basis: Tensor) -> Tensor:
        """(n,) Euclidean distance of every token (n, d) to what the tokens ``basis`` (b,) make of it."""
        x = x.float()
        rows = x[basis]  # (b, d)
        system = (rows @ rows.mT).double()
        ridge = 1e-5 + 1e-10 * system.diagonal().mean()  # the second part lets copies in the basis pass at any scale
        system.diagonal().add_(ridge)
        share = torch.linalg.solve(system, (rows @ x.mT).double()).float()  # (b, n)
        return (x - share.mT @ rows).norm(dim=1)

    def __call__(self, view: View) -> Reduction:
        return self.around(view, self.chosen(view))

    def around(self, view: View, basis: Tensor) -> Reduction:
        """The reduction with a given basis (b,), b < k or b = 0."""
        rows, _ = unit(view.x)  # refuses what is not finite
        if view.k == view.n:
            return Reduction.identity(view.n, rows.device)
        error = self.errors(view.x, basis) if len(basis) else view.x.float().norm(dim=1)
        few = view.k - len(basis)
        order = ranked(error if self.overwrite else error.index_fill(0, basis, -1))
        strong = order[:few]
        place = order[few : view.k].sort().values if self.overwrite else basis
        anchor = torch.cat([strong, place])
        rest = torch.ones_like(error, dtype=torch.bool).index_fill_(0, anchor, False).nonzero()[:, 0]
        goal = (rows[rest] @ rows[strong].mT).argmax(1)  # (r,)
        count = 1 + torch.bincount(goal, minlength=few).float()
        dst = torch.cat([torch.arange(view.k, device=goal.device), goal])
        weight = torch.cat([1 / count, torch.ones_like(basis, dtype=torch.float32), 1 / count[goal]])
        return Reduction(view.n, torch.cat([strong, basis, rest]), dst, weight, anchor).sorted()
