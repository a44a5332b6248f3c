"""ToMe (arXiv:2210.09461), in the tower: merge a few tokens before every block, so that each block is cheaper than the last.

At every stop tokens are split into two sets by turns; each of the first finds its most similar one in the second, measured
on the keys of the block before, and the best matches are averaged by size. Attention in later blocks counts a merged token
as all the tokens in it: the logarithm of its size is added to its logits (the paper's proportional attention).

What is odd: nothing decides what matters. Only what resembles something else disappears, and it disappears into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Card, TowerMethod
from ..parts.merge import bipartite
from ..tokens import Reduction, View


@dataclass(frozen=True)
class ToMeTower(TowerMethod):
    """Merge to k tokens by the end of the tower, an equal number before each block.

    Attributes:
        first: share of the tower's depth, in [0, 1), before which nothing is merged. More keeps more detail and less time.
        proportional: whether attention counts a merged token as all the tokens in it. Needs sdpa or eager attention.
    """

    card = Card(
        name="tome_tower",
        title="Token Merging: Your ViT But Faster",
        paper="arXiv:2210.09461",
        code="https://github.com/facebookresearch/ToMe",
        licence="CC-BY-NC-4.0",
        stages=("encoder",),
        features="before",
        needs=("keys",),
        mechanism="similarity",
        differences=(
            "Merging happens between blocks, on keys of the block before; the paper merges inside each block, between "
            "its attention and its MLP, on the keys of that attention.",
            "The budget is what is left after the tower; the r of each block follows from it, larger by one in the first "
            "blocks where it does not divide. The paper sets r. Where half of the tokens at every stop is not enough, the "
            "last stops merge in several rounds.",
            "The class token takes no part and no place in the two sets; in the authors' code it stands in the first.",
            "Tokens stay in raster order; the authors' code puts what was not merged in front.",
            "Where the connector joins patches, what is merged are the blocks of patches that it will join.",
            "Each picture, and each of its tiles, merges by itself, in proportion to its tokens.",
        ),
    )

    first: float = 0.0
    proportional: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.first < 1:
            raise ValueError(f"first={self.first} is not a share of the depth in [0, 1)")

    @property
    def weighs(self) -> bool:
        return self.proportional

    def stops(self, depth: int) -> Sequence[int]:
        return range(1 + int(self.first * (depth - 1)), depth)

    def __call__(self, view: View) -> Reduction:
        r = -(-(view.n - view.k) // (view.left + 1))  # an equal share of what is still to go, rounded up
        keys, size = view.need("keys"), view.size
        done = step = bipartite(keys, r, size)
        while done.m > view.n - r:  # a round merges half at most
            keys, size = step.apply(keys), step.sizes(size)
            step = bipartite(keys, done.m - (view.n - r), size)
            done = done.then(step)
        return done
