"""What ``foveate advise`` is asked for: targets, and the plans that might meet them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedError
from ...plan import Plan
from ..runner import Entry, grid

METHODS = ("divprune", "cdpruner", "dpcknn", "fastervlm", "fastv", "psigmoid", "resize")
SHARES = (0.5, 0.25, 0.125)
NUMBER = r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*"


@dataclass(frozen=True)
class Targets:
    """What a plan has to meet; None where nothing was asked.

    Attributes:
        drop: largest drop in accuracy (or share of answers that change), of 1.
        time: largest first-token time, and its unit: "x" is the uncompressed model's, "s" are seconds.
        tokens: most visual tokens, and the unit: "image" of each picture, "share" of what it has uncompressed.
    """

    drop: float | None = None
    time: tuple[float, str] | None = None
    tokens: tuple[float, str] | None = None

    @classmethod
    def parse(cls, max_drop: str | None = None, ttft: str | None = None, tokens: str | None = None) -> Targets:
        """Read the texts of the command line.

        Args:
            max_drop: "1pt", "0.5pt", "2%": points of accuracy.
            ttft: "0.6x" of the uncompressed model's first-token time, or "200ms", "1.5s".
            tokens: "<=256/image", or a share, "<=0.25" or "<=25%".

        Raises:
            UnsupportedError: if there is no target, or one cannot be read.
        """
        if max_drop is None and ttft is None and tokens is None:
            raise UnsupportedError("no target", hint='--max-drop 1pt, --ttft 0.6x, --tokens "<=256/image", or several')
        found: dict[str, Any] = {}
        if max_drop is not None:
            amount, _ = _read(
                "--max-drop", max_drop, NUMBER + r"(?P<unit>pt|pts|points?|%)", "1pt, 0.5pt or 2% (points of accuracy)"
            )
            if amount >= 100:
                raise UnsupportedError(f"--max-drop {max_drop}", hint="less than 100 points")
            found["drop"] = amount / 100
        if ttft is not None:
            amount, unit = _read(
                "--ttft", ttft, NUMBER + r"(?P<unit>x|ms|s)", "0.6x (of the uncompressed model's), 200ms or 1.5s"
            )
            found["time"] = (amount, "x") if unit == "x" else (amount / (1000 if unit == "ms" else 1), "s")
        if tokens is not None:
            form = '"<=256/image", or a share such as "<=0.25"'
            amount, unit = _read("--tokens", tokens, r"(?:<=)?\s*" + NUMBER + r"(?P<unit>/\s*image|%|)", form)
            amount = amount / 100 if unit == "%" else amount
            if unit in ("", "%") and amount > 1:
                raise UnsupportedError(f"--tokens {tokens}: a share is at most 1", hint=form)
            found["tokens"] = (amount, "share" if unit in ("", "%") else "image")
        return cls(**found)

    def texts(self) -> dict[str, str]:
        """The targets for people, by name."""
        found = {}
        if self.drop is not None:
            found["drop"] = f"at most {points(self.drop)}"
        if self.time is not None:
            found["first token"] = f"at most {self._time(self.time[0])}"
        if self.tokens is not None:
            amount, unit = self.tokens
            found["visual tokens"] = f"at most {amount:g}/image" if unit == "image" else f"at most {amount:g} of all"
        return found

    def _time(self, amount: float) -> str:
        relative = self.time is not None and self.time[1] == "x"
        return f"{amount:.3g}x" if relative else f"{1000 * amount:.4g} ms"

    def keeps(self) -> list[object]:
        """Budgets to try: the cap on tokens, half and a quarter of it; three shares if there is none."""
        if self.tokens is None:
            return list(SHARES)
        amount, unit = self.tokens
        if unit == "share":
            return [amount / part for part in (1, 2, 4)]
        return [*sorted({max(1, int(amount) // part) for part in (1, 2, 4)}, reverse=True)]


def _read(name: str, text: str, form: str, examples: str) -> tuple[float, str]:
    """A positive number and its unit."""
    found = re.fullmatch(form, text.strip())
    if found is None or float(found["number"]) <= 0:
        raise UnsupportedError(f"{name} {text!r}", hint=examples)
    return float(found["number"]), found["unit"].replace(" ", "")


def points(share: float, digits: int = 2) -> str:
    """A share of 1 in points of a hundred, with its word."""
    text = f"{100 * share:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return f"{'0' if text == '-0' else text} point{'' if text in ('1', '-1') else 's'}"


def about(number: int) -> str:
    """A number of samples that is only roughly known."""
    return f"about {float(f'{number:.2g}'):.0f}"


def candidates(
    targets: Targets, methods: Sequence[str] | None = None, keeps: Sequence[object] | None = None
) -> list[Entry]:
    """Methods that need no training and fit any question, each at three budgets, if nothing else is asked for."""
    found = grid(list(methods or METHODS), list(keeps or targets.keeps()))[1:]
    return list({entry.label: entry for entry in found}.values())


def plans_of(text: str) -> list[Entry]:
    """Plans with semicolons between them; a name that ends in .json is a file that ``Plan.save`` wrote."""
    found: dict[str, Entry] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        plan = Plan.load(part) if part.endswith(".json") else Plan.of(part)
        label = str(plan) if plan.positions == "original" else f"{plan} ({plan.positions} positions)"
        found[label] = Entry(label, plan, " > ".join(step.method.name for step in plan.steps))
    if not found:
        raise UnsupportedError(f"--plans {text!r} names no plan", hint='"divprune:keep=64; fastv:layer=2,keep=0.5"')
    return list(found.values())
