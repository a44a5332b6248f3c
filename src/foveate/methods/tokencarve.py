"""TokenCarve (arXiv:2503.10501): keep what carries the information of an early layer's output, then merge.

The output of a layer, as a matrix of visual tokens, is cut into singular directions. A token's information is the sum of
its shares in them, |U| s; that and the attention of the last prompt token each rank the tokens, and the ranks are averaged.
Half as many again as the budget stay; then the lower half of these looks for its like in the upper half, and the most
similar pairs become one.

What is odd: |U| s is the L1 norm of a token in the basis of its own picture: alone, it is no property of the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, LayerMethod
from ..parts.merge import nearest
from ..parts.pace import before, check_spots
from ..parts.score import known
from ..parts.select import ranked, top
from ..parts.similarity import gram
from ..tokens import Reduction, View

MODES = ("mix", "svd", "attention")


def information(x: Tensor) -> Tensor:
    """(n,) sum over singular directions of |U| s, for x = U S V^T (n, d). Of the two Gram matrices the smaller is solved.

    Raises:
        MethodError: if a value is NaN or infinite.
    """
    wide = x.double()  # a Gram matrix squares the range of the singular values, which a few huge features make wide
    known(wide.square().sum(1))
    n, d = wide.shape
    if n > d:
        return (wide @ torch.linalg.eigh(gram(wide.mT)).eigenvectors).abs().sum(1).float()  # U S = X V
    square, directions = torch.linalg.eigh(gram(wide))
    square = torch.where(square > n * torch.finfo(square.dtype).eps * square[-1:], square, 0)
    return (directions.abs() @ square.sqrt()).float()


def points(score: Tensor) -> Tensor:
    """(n,) n for the highest score (n,), down to 1 for the lowest; of equals the lowest index has more."""
    order, n = ranked(score), len(score)
    return torch.empty_like(order, dtype=torch.float32).index_copy_(
        0, order, torch.arange(n, 0, -1, dtype=torch.float32, device=score.device)
    )


@dataclass(frozen=True)
class TokenCarve(LayerMethod):
    """Keep the tokens with most information and attention before one layer, and merge a third of them into the others.

    Attributes:
        layer: the first layer that runs on fewer tokens, 1 or more; or a share of the depth below 1.0.
        merge: whether half as many again are kept, and merged down to the budget; else prune to the budget.
        mode: "mix" of both rankings, "svd" (information alone) or "attention" alone.
        weight: of the information in the mix, 0 to 1.
    """

    card = Card(
        name="tokencarve",
        title="TokenCarve: Information-Preserving Visual Token Compression in Multimodal Large Language Models",
        paper="arXiv:2503.10501",
        code="https://github.com/ShawnTan86/TokenCarve",
        licence="",
        stages=("layers",),
        needs=("last_row",),
        guidance="question",
        positions="original",
        mechanism="attention",
        differences=(
            "Information is measured on the layer's output, as in the authors' code; the paper speaks of the attention's.",
            "Singular directions come from the smaller Gram matrix in double precision, not from a full decomposition, and "
            "fewer features than tokens are allowed.",
            "Where half as many again are more than there are, all are kept before merging.",
            "Means are weighted by the number of original tokens in each, which is one unless an earlier step merged.",
            "Layers before the stop keep all tokens in their cache; the authors cut theirs to the tokens that stay.",
        ),
    )

    layer: float = 2
    merge: bool = True
    mode: str = "mix"
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight} is no share, 0 to 1")

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def attention(self, view: View) -> Tensor:
        """(n,) attention of the last prompt token."""
        return view.need("last_row").float().mean(0)

    def score(self, view: View) -> Tensor:
        """(n,) points of the ranking, 1 to n: by information, by attention, or the mean of both."""
        if self.mode == "attention":
            return points(self.attention(view))
        if self.mode == "svd":
            return points(information(view.x))
        return self.weight * points(information(view.x)) + (1 - self.weight) * points(self.attention(view))

    def __call__(self, view: View) -> Reduction:
        n, k = view.n, view.k
        first = min(k * 3 // 2, n) if self.merge else k
        order = ranked(self.score(view))[:first]
        if first == k:
            return Reduction.drop(order.sort().values, n)
        stays = order[: first // 2].sort().values  # that others are merged into
        others = order[first // 2 :].sort().values
        best, alike = nearest(view.x[torch.cat([stays, others])], torch.arange(len(stays), device=order.device))
        merged = top(alike[len(stays) :], first - k)
        alone = torch.ones_like(others, dtype=torch.bool).index_fill_(0, merged, False)
        anchor = torch.cat(
            [stays, others[alone.long().argsort(descending=True, stable=True)[: len(others) - first + k]]]
        )
        assign = torch.full((n,), -1, device=order.device)
        assign[anchor] = torch.arange(k, device=order.device)
        assign[others[merged]] = best[len(stays) :][merged]
        return Reduction.groups(assign, anchor, view.size).sorted()
