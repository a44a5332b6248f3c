"""DPC-KNN token clustering (TCFormer, arXiv:2204.08680; Chat-UniVi, arXiv:2311.08046; PPE, arXiv:2510.22936).

Density peaks become centres: tokens with close neighbours, and far from any token whose neighbours are closer. All others
join the nearest centre, and every cluster becomes the mean of its members.

What is odd: density is exponential in distances, which dwarfs how far the next peak is once features are large. Nothing
keeps a cluster in one place of the picture: PPE's answer is to let a token carry several positions, and that is
``positions="preserved"`` of a plan, for this method as for any other that merges.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Card, Method
from ..parts.cluster import density_peaks
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DPCKNN(Method):
    """Merge to k clusters around density peaks, averaging by size.

    Attributes:
        neighbours: how many of the nearest make the density, the token itself included.
    """

    card = Card(
        name="dpcknn",
        title="Chat-UniVi: Unified Visual Representation Empowers Large Language Models with Image and Video Understanding",
        paper="arXiv:2311.08046",
        code="https://github.com/PKU-YuanGroup/Chat-UniVi",
        licence="Apache-2.0",
        mechanism="similarity",
        differences=(
            "Ties go to the lowest index; the authors add random noise of a millionth to the density.",
            "Density times distance is compared by its logarithm. As such it becomes zero where features are large, and "
            "the centres are then arbitrary.",
            "A merged token stands at its cluster's centre, in the picture's order; in the code of Chat-UniVi and PPE "
            "tokens are ordered by the score of the centres.",
            "One round, at the connector. Chat-UniVi merges in several, of which the language model sees all, and was trained "
            "that way.",
            "Means are weighted by the number of original tokens in each, which is one unless an earlier step merged.",
            "The tiles of a picture are clustered together, those of its overview included.",
        ),
    )

    neighbours: int = 5

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours={self.neighbours} is not a number of tokens, 1 or more")

    def __call__(self, view: View) -> Reduction:
        home, centre = density_peaks(view.x, view.k, self.neighbours)
        return Reduction.groups(home, centre, view.size).sorted()
