"""Simignore (arXiv:2412.09817): tokens that no word of the question resembles are ignored.

Every token of the picture is compared with every word. All these pairs form one list, most similar first; whoever turns up
in it early stays.

What is odd: a token needs one word only. One that is close to "the" beats one that is fairly close to all the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Simignore(Method):
    """Keep the tokens that come first in the list of most similar pairs of token and word.

    Attributes:
        step: only every step-th pair of the list is looked at; more lets less similar tokens in.
        start: place in the list to begin at, 0 for the most similar pair.
    """

    card = Card(
        name="simignore",
        title="Simignore: Exploring and enhancing multimodal large model complex reasoning via similarity computation",
        paper="arXiv:2412.09817",
        code="https://github.com/FanshuoZeng/Simignore",
        licence="",
        needs=("question",),
        guidance="question",
        mechanism="similarity",
        differences=(
            "Ignored tokens leave the prompt. The authors' code masks them, so that nothing gets faster.",
            "Words are those of the whole question; the authors compare with the answer options only.",
            "Where the list ends before the budget is met, tokens follow that it passed over, most similar first.",
        ),
    )

    step: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step={self.step} is not a number of pairs, 1 or more")
        if self.start < 0:
            raise ValueError(f"start={self.start} is below 0")

    def order(self, view: View) -> Tensor:
        """(k,) the tokens in the order in which they turn up."""
        rows, words = unit(view.x)[0], unit(view.need("question"))[0]
        if not len(words):
            return torch.arange(view.k, device=rows.device)
        pairs = (rows @ words.to(rows.dtype).mT).flatten()  # (n q,) token by token
        place = torch.empty_like(pairs, dtype=torch.long)
        place[pairs.sort(descending=True, stable=True).indices] = torch.arange(len(pairs), device=pairs.device)
        off = place - self.start
        met = (off >= 0) & (off % self.step == 0)
        turn = (
            torch.where(met, place, place + len(pairs)).view(view.n, -1).amin(1)
        )  # (n, q) -> (n,); passed over: later
        return turn.argsort()[: view.k]  # all different

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(self.order(view).sort().values, view.n)
