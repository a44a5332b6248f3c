"""DART (arXiv:2502.11494) where its paper has it, after the first layers: duplicates of a few pivots go.

Pivots are tokens of the picture and words after it whose keys in the layer before have the largest L1 norm, all heads taken
together. Pivot by pivot, the tokens whose states are least similar to it stay. No attention is computed for it.

What is odd: strength is read from keys and likeness from states, and a strong key often belongs to a token that gathers
attention whatever the picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..method import Card, LayerMethod
from ..parts.pace import before, check_spots
from ..parts.pivots import strongest, unlike
from ..parts.similarity import unit
from ..tokens import Reduction, View


@dataclass(frozen=True)
class DARTLayers(LayerMethod):
    """Keep pivots with strong keys, and the tokens whose states are least similar to each pivot.

    Attributes:
        layer: the first layer that runs on fewer tokens, 1 or more; or a share of the depth below 1.0.
        pivots: tokens of the picture that are pivots, 1 or more.
        words: tokens of the text after the picture that are pivots, 0 or more.
    """

    card = Card(
        name="dart_layers",
        title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        paper="arXiv:2502.11494",
        code="https://github.com/ZichenWen1/DART",
        licence="Apache-2.0",
        stages=("layers",),
        needs=("layer_keys", "text_keys", "text"),
        guidance="question",
        positions="original",
        mechanism="similarity",
        differences=(
            "Pivots among words come from the text after the picture; one port takes them from all text, system prompt "
            "included.",
            "Cosines are those of the states as they enter the layer; one port normalises them first, which weighs features.",
            "Re-interpretation: pivots of the picture take their turns first, each kind from the strongest on. The text does "
            "not say, one port does the same, another has the order of a set.",
            "The budget is met exactly, pivots of the picture included: shares are rounded up and the last pivots get what is "
            "left. One port does so too, the other rounds down and adds the pivots on top.",
            "The paper prunes after layer 2, which is the default; public ports do before layer 5 (layer=5).",
        ),
    )

    layer: float = 2
    pivots: int = 4
    words: int = 4

    def __post_init__(self) -> None:
        check_spots("layer", self.layer)
        if self.pivots < 1:
            raise ValueError(f"pivots={self.pivots} is not a number of tokens, 1 or more")
        if self.words < 0:
            raise ValueError(f"words={self.words} is below 0")

    def stops(self, depth: int) -> Sequence[int]:
        return before((self.layer,), depth)

    def __call__(self, view: View) -> Reduction:
        rows, _ = unit(view.x)
        own = strongest(view.need("layer_keys"), min(self.pivots, view.k))
        told = view.need("text")[strongest(view.need("text_keys"), self.words)]
        likeness = torch.cat([rows[own], unit(told)[0].to(rows.dtype)]) @ rows.mT  # (p, n)
        return Reduction.drop(unlike(likeness, own, view.k).sort().values, view.n)
