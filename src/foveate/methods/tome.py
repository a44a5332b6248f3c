"""ToMe (arXiv:2210.09461), at the connector: merge the tokens that resemble each other most, a pair at a time.

Tokens are split into two sets by turns; each of the first finds its most similar one in the second, and the best matches
are averaged. A round costs one half-by-half product and can merge at most half; rounds follow until k are left.

What is odd: the paper merges a little in every block of the tower, on keys. Here the tower stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Card, Method
from ..parts.merge import bipartite
from ..tokens import Reduction, View


@dataclass(frozen=True)
class ToMe(Method):
    """Merge to k tokens by bipartite soft matching of the features, averaging by size."""

    card = Card(
        name="tome",
        title="Token Merging: Your ViT But Faster",
        paper="arXiv:2210.09461",
        code="https://github.com/facebookresearch/ToMe",
        licence="CC-BY-NC-4.0",
        mechanism="similarity",
        differences=(
            "All merging happens at the connector, on its output, in as few rounds as halving allows; the paper merges "
            "r tokens in every block of the tower, and measures similarity on the keys.",
            "Attention that accounts for size (log size added to the logits) belongs to the tower and is left out.",
            "Between rounds tokens are in raster order, so that neighbours face each other; the authors' code puts what "
            "was not merged in front, by similarity.",
        ),
    )

    def __call__(self, view: View) -> Reduction:
        x, size = view.x, view.size
        done = step = bipartite(x, view.n - view.k, size)
        while done.m > view.k:
            x, size = step.apply(x), step.sizes(size)
            step = bipartite(x, len(x) - view.k, size)
            done = done.then(step)
        return done
