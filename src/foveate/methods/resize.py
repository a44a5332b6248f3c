"""A smaller picture: fewer tokens because fewer pixels went in. The baseline that saves the tower's time too.

What is odd: the work is done before the tower, by ``stages/input.py``, which asks :meth:`Resize.grid` for the size and
hands over a full grid with the small picture's rows in its top left corner. What is left to do here is to take them,
and to put each on the place of the picture that it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import MethodError
from ..method import Card, Method
from ..parts.grid import fit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class Resize(Method):
    """Show the tower a smaller picture, of the grid that pool would give. One tile only."""

    card = Card(
        name="resize",
        title="Smaller input picture at an equal token count (baseline)",
        stages=("input",),
        count="grid",
    )

    def grid(self, height: int, width: int, k: int) -> tuple[int, int]:
        """(rows, columns) of tokens that a picture of ``height`` x ``width`` tokens may have for a budget of k."""
        return fit(height, width, k)

    def __call__(self, view: View) -> Reduction:
        last = torch.stack([view.row.max(), view.col.max(), view.tile.max() - view.tile.min()]).tolist()
        height, width = last[0] + 1, last[1] + 1
        if last[2] or height * width != view.n:
            raise MethodError(
                f"{view.n} tokens in {last[2] + 1} tile(s) are not one full grid of {height} x {width}",
                where="method resize",
                hint="pool works on tiles and on grids with gaps",
            )
        h, w = self.grid(height, width, view.k)
        row = torch.arange(h, device=view.x.device)[:, None]
        col = torch.arange(w, device=view.x.device)
        src = (row * width + col).flatten()  # (m,) where the small picture's rows are
        # Place of the middle of each cell of the small grid in the full one.
        anchor = ((2 * row + 1) * height // (2 * h) * width + (2 * col + 1) * width // (2 * w)).flatten()
        return Reduction(view.n, src, torch.arange(h * w, device=src.device), None, anchor)
