"""Pictures that come as an overview and tiles: where the tiles lie, and how a budget is split among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tokens import View


def allocate(
    weight: Sequence[float], total: int, room: Sequence[int], first: Sequence[float] | None = None
) -> list[int]:
    """Whole numbers in proportion to ``weight`` that add up to min(total, sum(room)), none above its room.

    What a full part cannot take goes to the others, again in proportion; if none of these has any weight, in proportion
    to their room.

    Args:
        weight: (g,) >= 0.
        total: units to give out.
        room: (g,) the most that each part can take.
        first: (g,) who gets the units that rounding down leaves, highest first; the largest remainders when None.
            Ties go to the lowest index.
    """
    given = [0] * len(room)
    open_ = [i for i, r in enumerate(room) if r]
    left = min(total, sum(room))
    shares: dict[int, float] = {}
    while open_:
        mass = {i: weight[i] for i in open_} if any(weight[i] > 0 for i in open_) else {i: room[i] for i in open_}
        whole = math.fsum(mass.values())
        shares = {i: left * mass[i] / whole for i in open_}
        full = [i for i in open_ if shares[i] >= room[i]]
        if not full:
            break
        for i in full:
            given[i] = room[i]
            left -= room[i]
        open_ = [i for i in open_ if i not in full]
    for i in open_:
        given[i] = math.floor(shares[i] + 1e-9)  # the epsilon undoes binary fractions just below a whole number
    rest = left - sum(given[i] for i in open_)
    order = sorted(open_, key=lambda i: (-(shares[i] - given[i] if first is None else first[i]), i))
    while rest > 0:  # twice at most: rounding leaves less than one unit per part
        for i in order:
            if rest > 0 and given[i] < room[i]:
                given[i] += 1
                rest -= 1
    return given


def boxes(view: View) -> Tensor:
    """(g, 4) left, top, right and bottom of every tile, in shares of the picture's width and height (float64).

    They are taken from the extra "boxes" if the view carries one. Without it, tile 0 is the overview and the others lie
    on one grid in raster order. How many tiles make a row of that grid is read from the order of the tokens: where tiles
    stand side by side, a line of tokens runs through all of them before the first tile comes again. Tokens cut off
    around the grid are padding, so the picture ends where the tokens end.
    """
    if "boxes" in view.extras:
        return view.extras["boxes"].value.to(view.x.device, torch.float64)
    count = int(view.tile.max()) + 1
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64, device=view.x.device)
    cut = view.tile > 0
    if count == 1 or not bool(cut.any()):
        return whole.expand(count, 4)
    runs = torch.unique_consecutive(view.tile[cut]).tolist()
    cols = runs.index(runs[0], 1) if runs[0] in runs[1:] else 1
    cols = cols if (count - 1) % cols == 0 else 1
    # In token steps, from the corner of the grid of tiles.
    height, width = view.row.max() + 1, view.col.max() + 1
    index = torch.arange(count - 1, device=view.x.device)
    left, top = index % cols * width, index // cols * height
    x, y = left[view.tile[cut] - 1] + view.col[cut], top[view.tile[cut] - 1] + view.row[cut]
    corners = torch.stack([left - x.min(), top - y.min(), left + width - x.min(), top + height - y.min()], 1).double()
    size = torch.stack([x.max() - x.min() + 1, y.max() - y.min() + 1]).double()
    return torch.cat([whole, corners / size.repeat(2)])


def overview(box: Tensor) -> int | None:
    """The first tile whose box (g, 4) holds the whole picture; None if there is none."""
    whole = (box[:, :2] < 1e-6).all(1) & (box[:, 2:] > 1 - 1e-6).all(1)
    found = whole.nonzero()[:, 0].tolist()
    return found[0] if found else None


def centres(view: View, box: Tensor, whole: int) -> Tensor:
    """(n, 2) where in the picture the middle of every token lies: x and y, in shares of its width and height.

    Tiles have the overview's number of tokens per side, or more if a token says so: theirs may have been cut.

    Args:
        view: the tokens.
        box: (g, 4) of the tiles.
        whole: the overview among them.
    """
    mine = view.tile == whole
    place = torch.stack([view.col, view.row], 1)  # (n, 2)
    side = torch.where(mine[:, None], place.where(mine[:, None], 0).amax(0), place.amax(0)) + 1
    low, high = box[view.tile, :2], box[view.tile, 2:]
    return low + (place + 0.5).double() / side * (high - low)
