"""OneVision-Encoder's patch choice (arXiv:2602.08683): encode only what a video codec would have to spend bits on.

Before the tower's first block each patch is predicted from its neighbours, or, in a later frame of a clip, from the patch at
the same place in the frame before. What the prediction misses is its residual. The patches with the most energy in their
residual go through the tower, at the positions they have in the picture; the others never enter it.

What is odd: nothing has been computed yet when the choice is made. A token is worth what is surprising about its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MethodError
from ..method import Card, ScoreMethod, TowerMethod
from ..tokens import View


@dataclass(frozen=True)
class OneVisionEncoder(ScoreMethod, TowerMethod):
    """Keep the k patches with the largest residual energy, before the tower."""

    card = Card(
        name="onevision_encoder",
        title="OneVision-Encoder: Codec-Aligned Sparsity as a Foundational Principle for Multimodal Intelligence",
        paper="arXiv:2602.08683",
        code="https://github.com/EvolvingLMMs-Lab/OneVision-Encoder",
        stages=("encoder",),
        features="before",
        needs=("pixels",),
        mechanism="transformation",
        differences=(
            "Re-interpretation: the energy is the squared difference of a patch's pixels from the mean of its four "
            "neighbours, or from the same place of the frame before. The authors decode motion vectors and residuals "
            "that an HEVC encoder wrote, and add up both.",
            "The authors choose patches in predicted frames of a video; of a single picture, and of the first frame of a "
            "group, they keep every patch. Here a picture is thinned out, too.",
            "The tower is the model's own, which was trained on whole pictures; the authors train one on such subsets.",
            "Positions are those of the tower in use (learned, or rotary in two axes); the authors share a rotary code "
            "over time, row and column.",
            "Where the connector joins patches, the blocks of patches that it will join are chosen.",
        ),
    )

    def stops(self, depth: int) -> Sequence[int]:
        return (0,)

    def score(self, view: View) -> Tensor:
        pixels = view.need("pixels").float()
        if not bool(pixels.isfinite().all()):
            raise MethodError("pixels hold NaN or infinity", hint="look at the processor's output")
        return (pixels - prediction(pixels, view)).square().sum(1)


def prediction(pixels: Tensor, view: View) -> Tensor:
    """(n, c) the patch at the same place of the frame before, else the mean of the neighbours there are.

    A patch without neighbours is predicted as the mean of all.
    """
    place = torch.stack([view.tile, view.t, view.row, view.col])
    place = place - place.amin(1, keepdim=True)
    shape = (place.amax(1) + 3).tolist()  # a border on either side, so that no neighbour wraps around
    step = torch.tensor([shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1], device=pixels.device)
    cell = ((place + 1) * step[:, None]).sum(0)  # (n,)
    at = torch.full((shape[0] * int(step[0]),), -1, device=pixels.device)
    at[cell] = torch.arange(len(cell), device=pixels.device)

    total, count = torch.zeros_like(pixels), torch.zeros_like(pixels[:, :1])
    for offset in (-step[3], step[3], -step[2], step[2]):
        other = at[cell + offset]
        there = (other >= 0)[:, None]
        total += torch.where(there, pixels[other.clamp(min=0)], 0)
        count += there
    guess = torch.where(count > 0, total / count.clamp(min=1), pixels.mean(0))
    before = at[cell - step[1]]
    return torch.where((before >= 0)[:, None], pixels[before.clamp(min=0)], guess)
