"""k-means over tokens, with their places in the metric: each cluster becomes one token, the mean of its members.

A token is its features and where it lies in the picture. Both are brought to variance one first, so that ``places`` says
how much the place counts beside the features: 0 is k-means on features, and very large values cut the picture into cells.

What is odd: k-means is known for its random start. Here it begins at the token nearest to the mean and goes to whatever is
farthest from all picks so far, so that the same picture always gives the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ..method import Card, Method
from ..parts.cluster import farthest_points, kmeans
from ..parts.tiles import boxes, centres, overview
from ..tokens import Reduction, View


@dataclass(frozen=True)
class KMeans(Method):
    """Merge to k clusters by k-means on features and places, averaging by size.

    Attributes:
        places: variance of the places beside that of the features, >= 0.
        rounds: at most, >= 0; with none, tokens join the nearest of the picks that k-means would start from.
    """

    card = Card(
        name="kmeans",
        title="k-means clusters of features and places (baseline)",
        mechanism="similarity",
        differences=(
            "Re-interpretation: places are x and y in shares of the picture's sides, scaled so that all their variance is "
            "`places` times that of the features; published variants do not agree on a scale.",
            "The start is farthest-point and not random. A centre that loses its tokens takes the one that is worst served.",
            "A merged token stands at the place of the member nearest to its cluster's mean.",
        ),
    )

    places: float = 1.0
    rounds: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.places < float("inf"):
            raise ValueError(f"places={self.places} is not a number, 0 or more")
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds} is below 0")

    def points(self, view: View) -> Tensor:
        """(n, d) what is clustered; (n, d + 2) if places count."""
        features = standard(view.x.float())
        if not self.places:
            return features
        box = boxes(view)
        whole = overview(box)
        where = centres(view, box, -1 if whole is None else whole)  # (n, 2)
        return torch.cat([features, self.places**0.5 * standard(where.float())], 1)

    def __call__(self, view: View) -> Reduction:
        points = self.points(view)
        middle = points.square().sum(1).argmin(0, keepdim=True)  # the mean is 0
        home, _ = farthest_points(points, middle, view.k)
        home, anchor = kmeans(points, home, view.k, self.rounds)
        return Reduction.groups(home, anchor, view.size).sorted()


def standard(x: Tensor) -> Tensor:
    """(n, d) with mean 0 and, all columns together, variance 1; zeros if the rows are equal.

    Raises:
        MethodError: if a value is NaN or infinite.
    """
    x = x - x.mean(0)
    largest = x.abs().amax()
    x = x / torch.where(largest > 0, largest, 1)  # so that no square is too large or too small
    scale = x.square().sum(1).mean().sqrt()
    if not bool(scale.isfinite()):
        raise MethodError("features hold NaN or infinity", hint="look for overflow (fp16 outside autocast?)")
    return x / torch.where(scale > 0, scale, 1)
