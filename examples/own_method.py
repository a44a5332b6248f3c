"""A method of your own in one script: no registration, no package. It keeps tokens whose right neighbour looks different.

    python examples/own_method.py

When it is worth keeping, `foveate new edges` makes a file and a test of it, or a plug-in package.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import foveate
from foveate import Card, ScoreMethod, View


@dataclass(frozen=True)
class Edges(ScoreMethod):
    """Keep tokens that differ from the next one in their row."""

    card = Card(name="edges", title="Tokens at edges (baseline)", mechanism="similarity")

    def score(self, view: View) -> Tensor:
        """(n,) distance to the next token; the last token has none."""
        x = view.x.float()  # (n, d)
        same_row = (view.row[1:] == view.row[:-1]) & (view.tile[1:] == view.tile[:-1])
        distance = (x[1:] - x[:-1]).norm(dim=-1) * same_row  # (n - 1,)
        return torch.cat([distance, distance.new_zeros(1)])


def main() -> None:
    """Ask the shipped model one question with a ninth of its visual tokens."""
    from foveate import testbed

    model, processor = testbed.load()
    sample = testbed.samples(["reading-short"], limit=1)
    with foveate.compress(model, Edges(), keep=64) as run:
        ((asked, said),) = testbed.answer(model, processor, sample)
    print(f"{asked.question}? {said!r}, expected {asked.answer!r}")
    print(run.report)


if __name__ == "__main__":
    main()
