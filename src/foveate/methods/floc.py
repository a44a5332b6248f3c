"""FLoC (arXiv:2511.00141): a few tokens to stand for all, the facility location problem.

Every token of the picture is served by the kept token most similar to it; the kept ones should serve all as well as
possible. Greedy choice is provably near the best set, and its lazy form looks at a fraction of the candidates.

What is odd: a long clip is cut into stretches of 32 frames, each solved alone, so that a scene that comes back is paid for
again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..method import Card, Method
from ..parts.greedy import cover
from ..parts.similarity import cosines
from ..parts.tiles import allocate
from ..tokens import Reduction, View


@dataclass(frozen=True)
class FLoC(Method):
    """Keep k tokens by lazy greedy facility location on cosines, stretch by stretch.

    Attributes:
        frames: frames per stretch. More finds more repetition, at a cost that grows with the square.
    """

    card = Card(
        name="floc",
        title="FLoC: Facility Location-Based Efficient Visual Token Compression for Long Video Understanding",
        paper="arXiv:2511.00141",
        modality=("image", "video"),
        mechanism="similarity",
        differences=(
            "Re-interpretation: tokens are taken after the connector, and a stretch gets its share of the budget by its "
            "number of tokens, whole numbers by largest remainder.",
            "Re-interpretation: kept tokens stay in the order of the input.",
        ),
    )

    frames: int = 32

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames={self.frames} is not a number of frames, 1 or more")

    def __call__(self, view: View) -> Reduction:
        stretch = torch.div(view.t - view.t.min(), self.frames, rounding_mode="floor")  # (n,)
        size = torch.bincount(stretch).tolist()
        kept = []
        for number, k in enumerate(allocate(size, view.k, size)):
            if k:
                mine = (stretch == number).nonzero()[:, 0]
                kept.append(mine[cover(cosines(view.x[mine]), k)])
        return Reduction.drop(torch.cat(kept).sort().values, view.n)
