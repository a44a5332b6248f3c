"""The budget: the only place where ``keep`` is read, range-checked, rounded and split.

==================  ==========================================================
``0.25``            a share of the image's tokens, in (0, 1]
``64``              tokens per image
``"25%"``           a share
``"64/image"``      tokens per image
``"2048/total"``    tokens over all images of a sample
``"16/frame"``      tokens per frame
``"=128/image"``    any of these, strict: an image with fewer tokens is an error
==================  ==========================================================

All but the strict form are caps: an image with fewer tokens keeps what it has, and the report says so. Only content
tokens count; newlines and separators are structure.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real

from .errors import KeepError

FORMS = 'a share in (0, 1] such as 0.25, a whole number >= 1 such as 64, or text: "25%", "64/image", "2048/total", '
FORMS += '"16/frame", each also strict with a leading "=" ("=128/image")'
SPLITS = ("proportional", "equal")

_TEXT = re.compile(r"(=?)\s*(?:(\d+(?:\.\d+)?)\s*%|(\d+)\s*/\s*(image|total|frame))")


@dataclass(frozen=True)
class Budget:
    """How many tokens to keep.

    Attributes:
        amount: a share in (0, 1] if ``unit`` is "share", else a count >= 1.
        unit: "share", "image", "total" or "frame".
        strict: raise instead of keeping fewer than asked.
        split: how "total" is shared out: "proportional" to the images' tokens, or "equal" with what small images
            leave over going to the others.
    """

    amount: float
    unit: str
    strict: bool = False
    split: str = "proportional"

    @classmethod
    def parse(cls, keep: object, split: str = "proportional") -> Budget:
        """Read any spelling of ``keep``.

        Raises:
            KeepError: if it is none of the forms in the module's table.
        """
        if split not in SPLITS:
            raise KeepError(f"unknown split {split!r}", hint=f"one of {', '.join(SPLITS)}")
        if isinstance(keep, Budget):
            return keep
        bad = KeepError(f"keep={keep!r} is not a budget", hint=FORMS)
        if isinstance(keep, bool) or keep is None:
            raise bad
        if isinstance(keep, Integral):
            if keep < 1:
                raise bad
            return cls(int(keep), "image", split=split)
        if isinstance(keep, Real):
            if not 0 < float(keep) <= 1:
                raise bad
            return cls(float(keep), "share", split=split)
        found = _TEXT.fullmatch(keep.strip()) if isinstance(keep, str) else None
        if found is None:
            raise bad
        strict, percent, count, unit = found.groups()
        # Decimal, because float(percent) / 100 may miss the share that __str__ wrote by one binary place
        amount, unit = (float(Decimal(percent) / 100), "share") if percent else (int(count), unit)
        if amount <= 0 or (unit == "share" and amount > 1):
            raise bad
        return cls(amount, unit, bool(strict), split)

    def __str__(self) -> str:
        if self.unit == "share":
            text = f"{(Decimal(repr(self.amount)) * 100).normalize():f}%"  # every digit: parse() gives this share again
        else:
            text = f"{int(self.amount)}/{self.unit}"
        return ("=" if self.strict else "") + text

    @property
    def is_all(self) -> bool:
        """True if nothing can be dropped, whatever the input."""
        return self.unit == "share" and self.amount == 1

    def counts(self, sizes: list[int], frames: list[int] | None = None) -> list[int]:
        """Content tokens to keep of each image of one sample.

        Args:
            sizes: content tokens of each image.
            frames: frames of each image (1 for a still picture); only "frame" reads it.

        Raises:
            KeepError: if strict and an image (or, for "total", the sample) holds fewer tokens than asked.
        """
        if self.unit == "share":
            return [min(n, max(1, nearest(self.amount * n))) if n else 0 for n in sizes]
        if self.unit == "total":
            self._strict(sum(sizes), int(self.amount), "sample")
            return share_out(int(self.amount), sizes, self.split)
        factors = frames if self.unit == "frame" and frames is not None else [1] * len(sizes)
        asked = [int(self.amount) * f for f in factors]
        for n, k in zip(sizes, asked, strict=True):
            self._strict(n, k, "image")
        return [min(n, k) for n, k in zip(sizes, asked, strict=True)]

    def _strict(self, n: int, k: int, of: str) -> None:
        if self.strict and k > n:
            raise KeepError(
                f"keep={self} asks for {k} tokens, the {of} has {n}", hint=f'without "=" it is a cap: "{str(self)[1:]}"'
            )


def nearest(x: float) -> int:
    """Nearest whole number, halves up. The epsilon undoes binary fractions such as 0.145 * 100 = 14.499..."""
    return math.floor(x + 0.5 + 1e-9)


def share_out(total: int, sizes: list[int], split: str = "proportional") -> list[int]:
    """Split ``total`` over parts that hold ``sizes`` tokens each; the shares add up to min(total, sum(sizes)).

    Every part that has tokens gets at least one, so that no image vanishes from the prompt; only if ``total`` is below
    the number of such parts do the shares add up to more.

    Args:
        total: tokens to give out.
        sizes: tokens each part holds; a share never exceeds it.
        split: "proportional" (largest remainder, lowest index first) or "equal" (what small parts cannot use goes to
            the larger ones).
    """
    everything = sum(sizes)
    total = min(total, everything)
    if split == "equal":
        given, left = [0] * len(sizes), total
        for rank, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
            given[i] = min(sizes[i], left // (len(sizes) - rank))
            left -= given[i]
    else:
        given = [total * s // max(everything, 1) for s in sizes]
        remainders = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % max(everything, 1)), i))
        for i in remainders[: total - sum(given)]:
            given[i] += 1
    for i, s in enumerate(sizes):
        if s and not given[i]:
            given[i] = 1
            richest = max(range(len(sizes)), key=lambda j: given[j])
            given[richest] -= given[richest] > 1
    return given
