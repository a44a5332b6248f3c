"""Where in a stack of layers a method stops, and how much it leaves at each stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..budget import nearest
from ..tokens import View


def before(spots: Sequence[float], depth: int, first: int = 1) -> list[int]:
    """Layers that spots stand for, ascending, each once.

    Args:
        spots: whole numbers are layers; fractions below 1 are shares of the depth, so that a schedule fits other models.
        depth: number of layers.
        first: the earliest layer there may be a stop before; 1 where something is read in the layer before.
    """
    layers = (spot if isinstance(spot, int) else nearest(spot * depth) for spot in spots)
    return sorted({min(max(layer, first), depth - 1) for layer in layers})


def check_spots(name: str, spots: object) -> None:
    """Raise ValueError unless ``spots`` are layers or shares of the depth, as :func:`before` takes them."""
    each = spots if isinstance(spots, tuple) else (spots,)
    for spot in each:
        layer = isinstance(spot, int) and not isinstance(spot, bool) and spot >= 0
        if not (layer or (isinstance(spot, float) and 0 <= spot < 1)):
            raise ValueError(f"{name}={spots!r} is no layer (0, 1, ...) or share of the depth below 1.0")
    if not each:
        raise ValueError(f"{name} is empty")


def geometric(view: View) -> int:
    """Tokens to leave at this stop, so that the same share leaves at each of those to come and the last leaves ``view.k``."""
    if view.left == 0 or view.k >= view.n:
        return min(view.k, view.n)
    return max(view.k, nearest(view.n * (view.k / view.n) ** (1 / (view.left + 1))))


def bisect(rises: Callable[[float], float], most: float, low: float, high: float) -> float:
    """The largest x from ``low`` to ``high`` at which a function that rises with x is at most ``most``, else ``low``."""
    if rises(high) <= most:
        return high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) <= most else (low, middle)
    return low
