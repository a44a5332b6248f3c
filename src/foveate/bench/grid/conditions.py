"""Samples under other conditions: pictures degraded as they are in use, and a selection that is made once per conversation.

Degradations come in three severities and touch pixels only; sizes stay, so that token counts do. Noise is drawn from
the picture's own bytes: the same picture is spoilt the same way in every run and under every plan.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ...errors import UnsupportedError
from ..tasks import Task

CLEAN = "clean"
SEVERITIES = (1, 2, 3)


def blurred(image: Image.Image, severity: int, draw: np.random.Generator) -> Image.Image:
    """Gaussian blur; its deviation is 1/300, 1/150 or 1/75 of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / (300, 150, 75)[severity - 1]))


def noisy(image: Image.Image, severity: int, draw: np.random.Generator) -> Image.Image:
    """Gaussian noise with a deviation of 8, 16 or 32 % of the range."""
    values = np.asarray(image, dtype=np.float32)
    return _image(values + draw.normal(0, 255 * (0.08, 0.16, 0.32)[severity - 1], values.shape))


def recompressed(image: Image.Image, severity: int, draw: np.random.Generator) -> Image.Image:
    """JPEG at quality 30, 15 or 7."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=(30, 15, 7)[severity - 1])
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def darkened(image: Image.Image, severity: int, draw: np.random.Generator) -> Image.Image:
    """A third, a tenth or a thirtieth of the light, counted in 250 photons at white, and its 8-bit levels stored as they are."""
    photons = 250 * np.asarray(image, dtype=np.float64) / 255 * (1 / 3, 1 / 10, 1 / 30)[severity - 1]
    return _image(draw.poisson(photons) / 250 * 255)


KINDS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": blurred,
    "noise": noisy,
    "jpeg": recompressed,
    "dark": darkened,
}
CONDITIONS = (CLEAN, *(f"{kind}-{severity}" for kind in KINDS for severity in SEVERITIES))


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def conditions_of(names: Sequence[str]) -> list[str]:
    """Conditions by name, "clean" first: a kind stands for its three severities, "all" for everything.

    Raises:
        UnsupportedError: on an unknown name.
    """
    found = [CLEAN]
    for name in names:
        if name == "all":
            found += CONDITIONS
        elif name in KINDS:
            found += [f"{name}-{severity}" for severity in SEVERITIES]
        elif name in CONDITIONS:
            found.append(name)
        else:
            raise UnsupportedError(f"there is no condition {name!r}", hint=f"{', '.join(KINDS)}, blur-2, ..., or all")
    return list(dict.fromkeys(found))


def under(task: Task, condition: str) -> Task:
    """The task with its pictures in a condition; "clean" is the task itself."""
    if condition == CLEAN:
        return task
    kind, _, severity = condition.partition("-")
    if condition not in CONDITIONS:
        raise UnsupportedError(f"there is no condition {condition!r}", hint=", ".join(CONDITIONS))
    spoil = KINDS[kind]

    def inputs(processor: Any, samples: Sequence[Any]) -> Any:
        spoilt = [[spoil(image, int(severity), _draw(image)) for image in s.images] for s in samples]
        return task.inputs(processor, [replace(s, images=i) for s, i in zip(samples, spoilt, strict=True)])

    return replace(task, inputs=inputs)


def _draw(image: Image.Image) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "little"))


def opening(sample: Any) -> Any:
    """The conversation of a sample as it was when its first question was asked.

    Raises:
        UnsupportedError: if nothing was said before the sample's question.
    """
    if not getattr(sample, "history", None):
        raise UnsupportedError("a sample without earlier turns has no first turn but its own")
    return replace(sample, question=sample.history[0][0], history=[])
