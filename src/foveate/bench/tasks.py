"""What the runner asks a model: samples in slices, how they become a batch, and when an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A set of questions with one right answer each.

    Attributes:
        name: shown next to every number.
        samples: objects with at least ``slice`` (a name) and ``images``.
        inputs: (processor, samples) -> a left-padded batch for ``model.generate``.
        correct: (what the model said, sample) -> whether it is right.
        note: what a reader must know of numbers made with it.
    """

    name: str
    samples: Sequence[Any]
    inputs: Callable[[Any, Sequence[Any]], Any]
    correct: Callable[[str, Any], bool]
    note: str = ""

    def slices(self) -> list[str]:
        """Names of the slices, in the order of the samples."""
        return list(dict.fromkeys(s.slice for s in self.samples))


def testbed_task(slices: Sequence[str] | None = None, limit: int | None = None) -> Task:
    """Questions of the shipped testbed.

    Args:
        slices: names, or None for all.
        limit: questions per slice, or None for all.
    """
    from .. import testbed

    return Task(
        "testbed",
        testbed.samples(slices, limit),
        testbed.inputs,
        testbed.correct,
        "Measured on the testbed, a small model that ships with Foveate; a larger model may rank methods differently.",
    )
