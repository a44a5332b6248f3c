"""PruMerge and PruMerge+ (arXiv:2403.15388): outliers of the CLS token's attention stay, and take in what is like them.

The tokens with the highest attention stay. To each is added the sum of the 32 tokens whose keys resemble its own most,
weighted by attention. What was not kept makes one more token, the attention-weighted sum of it all. PruMerge+ keeps
evenly spaced tokens beside the outliers, so that no part of the picture goes missing.

What is odd: weights are not divided by their sum, so that a token keeps all of itself and gains a few per cent; and
those that it takes in may be kept tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..budget import nearest
from ..method import Card, Method
from ..parts.select import evenly, ranked
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class PruMerge(Method):
    """Keep outliers of attention, add their nearest by keys to them, and sum up the rest in one token.

    Attributes:
        plus: keep evenly spaced tokens too: three for each outlier.
        adaptive: let the attention decide how many outliers there are, the paper's rule: those above the third quartile
            by more than 1.5 times the distance of the quartiles. Never more than the budget in all.
        neighbours: how many tokens are added to each; 0 adds none.
    """

    card = Card(
        name="prumerge",
        title="LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
        paper="arXiv:2403.15388",
        code="https://github.com/42Shawn/LLaVA-PruMerge",
        licence="Apache-2.0",
        features="before",
        needs=("attention", "keys"),
        mechanism="attention",
        differences=(
            "The number of tokens is the budget by default; the paper's rule is the option `adaptive`.",
            "The paper speaks of a weighted average; as in the authors' code it is the token plus a weighted sum.",
            "The token of the rest is one of the budget and stands at the place of its strongest member; the authors "
            "append it on top. A budget of one has none.",
            "Tokens stay in the picture's order; the authors sort them by attention.",
            "Attention is the mean over heads at the layer whose features the model uses; the authors take the last "
            "layer and one product over all channels.",
            "Re-interpretation: with a given budget PruMerge+ spends a quarter on outliers and spaces the others evenly "
            "over what is left, as its adaptive rule does on average.",
            "Many outliers make the adaptive spacing of PruMerge+ zero, and the authors' code stops with an error; here "
            "it is at least one. Evenly spaced tokens over the budget are thinned evenly.",
            "Where the connector does not map token by token, the reduction is applied to features after it.",
        ),
    )

    plus: bool = False
    adaptive: bool = False
    neighbours: int = 32

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ValueError(f"neighbours={self.neighbours} is below 0")
        if self.adaptive:
            object.__setattr__(self, "card", replace(self.card, count="content"))

    def kept(self, attention: Tensor, k: int) -> Tensor:
        """(m,) tokens that stay, m <= k, in order. attention: (n,)."""
        n, order = len(attention), ranked(attention)
        if self.adaptive:
            low, high = torch.quantile(attention, torch.tensor([0.25, 0.75], device=order.device)).tolist()
            strong = max(1, int((attention > high + 1.5 * (high - low)).sum()))
        else:
            strong = max(1, nearest(k / 4)) if self.plus else k
        best = order[: min(strong, k)]
        if self.plus:
            other = torch.ones(n, dtype=torch.bool, device=order.device).index_fill_(0, best, False)
            if self.adaptive:
                other &= torch.arange(n, device=order.device) % max(1, n // strong // 3) == 0
            even = other.nonzero()[:, 0]
            best = torch.cat([best, even[evenly(len(even), min(k - len(best), len(even)), even.device)]])
        return best.sort().values

    def __call__(self, view: View) -> Reduction:
        attention, keys = view.need("attention").float().mean(0), view.need("keys")  # (n,), (n, d)
        kept = self.kept(attention, max(1, view.k - 1))
        token = torch.arange(view.n, device=kept.device)
        goal, source = nearest_each(keys, kept, self.neighbours)
        src, dst = torch.cat([kept, source]), torch.cat([token[: len(kept)], goal])
        weight = torch.cat([torch.ones(len(kept), device=kept.device), attention[source]])
        anchor = kept
        if view.k > 1 and len(kept) < view.n:
            rest = token[torch.ones_like(token, dtype=torch.bool).index_fill_(0, kept, False)]
            anchor = torch.cat([kept, rest[attention[rest].argmax(0, keepdim=True)]])
            src, dst = torch.cat([src, rest]), torch.cat([dst, torch.full_like(rest, len(kept))])
            weight = torch.cat([weight, attention[rest]])
        return Reduction(view.n, src, dst, weight, anchor).sorted()


def nearest_each(rows: Tensor, index: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The ``most`` others that are most similar to each of some rows, by cosine; ties go to the lowest index.

    Args:
        rows: (n, d).
        index: (m,) rows that are asked for.
        most: how many of the n - 1 others.

    Returns:
        (e,) place in ``index`` and (e,) row of every pair.
    """
    direction, _ = unit(rows)
    likeness = direction[index] @ direction.mT  # (m, n)
    most = min(most, len(rows) - 1)
    if not most:
        return index[:0], index[:0]
    likeness.scatter_(1, index[:, None], -torch.inf)
    least = likeness.topk(most, dim=1).values[:, -1:]  # (m, 1)
    above, equal = likeness > least, likeness == least
    chosen = above | (equal & (equal.cumsum(1) <= most - above.sum(1, keepdim=True)))
    pairs = chosen.nonzero()
    return pairs[:, 0], pairs[:, 1]
