"""IMA's skipping (arXiv:2405.16700): what a picture's tokens are changes slowly, so not every layer has to work on them.

Between layers the states of perceptual tokens hardly turn. In every second layer they skip the feed-forward network, which is
most of a layer's arithmetic; attention runs as ever, so that text finds keys and values of its own depth.

What is odd: which layers skip follows from their number, not from how little they would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Card, WorkMethod
from ..routes import Work
from ..tokens import View


@dataclass(frozen=True)
class IMA(WorkMethod):
    """Visual tokens skip the feed-forward network of some layers.

    Attributes:
        interval: every how many layers; 1 is all of those allowed.
        spare: layers at the beginning and at the end that never skip.
    """

    card = Card(
        name="ima",
        title="Implicit Multimodal Alignment: On the Generalization of Frozen LLMs to Multimodal Inputs",
        paper="arXiv:2405.16700",
        code="https://github.com/mshukor/ima-lmms",
        licence="",
        stages=("layers",),
        count="content",
        positions="original",
        mechanism="transformation",
        differences=(
            "A token that skips keeps the state that attention left it with; in one variant of the authors' code it also gets "
            "its normalised state added.",
            "Layers are skipped while the prompt runs; the authors' other modes, which skip while decoding, are not here.",
        ),
    )

    interval: int = 2
    spare: int = 1

    def __post_init__(self) -> None:
        if self.interval < 1 or self.spare < 0:
            raise ValueError(f"interval={self.interval}, spare={self.spare}: an interval is 1 or more, spare 0 or more")

    @property
    def attends(self) -> bool:
        return False

    def stops(self, depth: int) -> Sequence[int]:
        some = [layer for layer in range(self.spare, depth - self.spare) if layer % self.interval == 0]
        return some or [depth - 1]

    def __call__(self, view: View) -> Work | None:
        skips = view.layer % self.interval == 0 and self.spare <= view.layer < view.depth - self.spare
        return Work(feeds=False) if skips else None
