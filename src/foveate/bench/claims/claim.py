"""What a claim is, and how numbers become a verdict: by rules that are written down before any number is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evidence import Evidence

SUPPORTED, NOT_SUPPORTED, UNDECIDED = VERDICTS = ("supported", "not supported", "undecided")
LEVEL = 0.95


class MissingError(Exception):
    """What a claim needs was not measured."""


@dataclass(frozen=True)
class Span:
    """A number and its interval."""

    value: float
    low: float
    high: float

    def points(self) -> str:
        """Of a difference of shares, in points."""
        return f"{100 * self.value:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"

    def lost(self) -> str:
        """Of a loss, in points."""
        return f"{100 * self.value:.1f} points ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def percent(self) -> str:
        """Of a share."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def plain(self) -> str:
        """Of anything else."""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def data(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Judgement:
    """What a claim comes to.

    Attributes:
        verdict: one of :data:`VERDICTS`.
        why: one or two sentences with the numbers and their intervals.
        numbers: the same, and what lies behind them, as plain data; under "table" what the page is to show: "columns", and
            "rows" of cells.
    """

    verdict: str
    why: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A claim of the field that can be checked on one small model.

    Attributes:
        id: its number in the project's list of claims.
        text: what is claimed, in our words.
        sources: papers that claim it, or build on it.
        check: what is compared, and the rule of the verdict.
        needs: what has to be measured: names of :class:`foveate.bench.claims.evidence.Evidence`'s parts.
        judge: from evidence to a judgement.
        reach: what the check leaves open, whatever comes out.
    """

    id: str
    text: str
    sources: tuple[str, ...]
    check: str
    needs: tuple[str, ...]
    judge: Callable[[Evidence], Judgement]
    reach: str = ""


def above(span: Span, bar: float = 0.0) -> str:
    """Whether a number lies above a bar, by its interval."""
    return SUPPORTED if span.low > bar else NOT_SUPPORTED if span.high < bar else UNDECIDED


def below(span: Span, bar: float) -> str:
    """Whether a number lies below a bar, by its interval."""
    return above(Span(-span.value, -span.high, -span.low), -bar)


def sized(span: Span, size: float) -> str:
    """Whether an effect is there, and not shown to be smaller than claimed."""
    return NOT_SUPPORTED if span.high < size else above(span)


def every(verdicts: Sequence[str]) -> str:
    """Of a claim whose parts must all hold: one that fails is enough against it."""
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return UNDECIDED if UNDECIDED in verdicts else SUPPORTED


def each(verdicts: Sequence[str]) -> str:
    """Of a claim that says the same of several things: it fails if it fails for all of them."""
    return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED
