"""CDPruner (arXiv:2506.10967): tokens that differ from each other, where differing counts more near the question.

A determinantal point process prefers sets of tokens that span a large volume. Here each token's length in that space is
its relevance to the question, so that one set is both varied and to the point. The best set is built greedily.

What is odd: relevance is stretched over the whole range from 0 to 1, however little the tokens differ in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.greedy import volume
from ..parts.score import relevance
from ..parts.similarity import cosines
from ..tokens import Reduction, View


@dataclass(frozen=True)
class CDPruner(Method):
    """Keep k tokens by a determinantal point process on cosines, conditioned on relevance to the question."""

    card = Card(
        name="cdpruner",
        title="Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        paper="arXiv:2506.10967",
        code="https://github.com/Theia-4869/CDPruner",
        licence="Apache-2.0",
        needs=("question",),
        guidance="question",
        mechanism="similarity",
        differences=(
            "Re-interpretation: relevance is the mean cosine with the question's words in the language model's embedding "
            'space, unless the view carries the extra "relevance" of a text encoder such as CLIP\'s, as the authors use.',
            "The authors turn the sign of CLIP's patch similarities, which are known to be inverted; whoever fills "
            '"relevance" does that.',
            "When every token that is left is a copy of what was picked, picking starts anew on the rest. The authors' "
            "code then follows rounding noise, or NaN.",
            "Equal relevance of all tokens leaves plain diversity; in the authors' code it gives infinities.",
            "With several tiles the budget is the image's, and tiles compete for it.",
        ),
    )

    @staticmethod
    def quality(relevance: Tensor) -> Tensor:
        """Relevance (n,) stretched to [0, 1]; the least keeps a trace, so that no token is impossible."""
        low, high = relevance.min(), relevance.max()
        return torch.where(high > low, (relevance - low + 1e-6) / (high - low), torch.ones_like(relevance))

    def __call__(self, view: View) -> Reduction:
        picked = volume(cosines(view.x), self.quality(relevance(view)), view.k)
        return Reduction.drop(picked.sort().values, view.n)
