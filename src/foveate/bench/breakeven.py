"""From how many visual tokens on a plan pays: what it saves of the time to the first token, over the size of the prompt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..plan import Plan
from .inside import GROUP
from .runner import STOCK, prefill
from .shapes import tokens_of
from .subject import Setting, tried
from .timing import Job

SIZES = ((1, 0.25), (1, 0.5), (1, 1.0), (2, 1.0), (4, 1.0))  # pictures of a prompt, share of their usual side


@dataclass(frozen=True)
class Line:
    """Seconds saved over visual tokens: ``start + slope * tokens``."""

    start: float
    slope: float

    @classmethod
    def through(cls, tokens: Sequence[float], saved: Sequence[float]) -> Line:
        """By least squares, of at least two different numbers of tokens."""
        slope, start = statistics.linear_regression(tokens, saved)
        return cls(start, slope)

    @property
    def root(self) -> float | None:
        """Tokens from which on it is positive: 0 if it is from the first on, None if long prompts never save."""
        if self.slope > 0:
            return max(0.0, -self.start / self.slope)
        return 0.0 if self.slope == 0 and self.start > 0 else None


def break_even(tokens: Sequence[int], saved: Sequence[Sequence[float]]) -> tuple[float | None, str]:
    """Below how many visual tokens of a prompt a plan does not pay, and how that was found.

    Attention grows faster than its prompt, so what is saved bends upwards, and a line through it meets zero rather late.

    Args:
        tokens: visual tokens of prompts, ascending.
        saved: for each of these, seconds to the first token that the plan saved, round by round.

    Returns:
        Tokens (0 if it always pays, None if it never does), and words.
    """
    if len(tokens) < 2:
        return None, f"a line needs prompts of two sizes, and {len(tokens)} could be measured"
    middle = [statistics.median(each) for each in saved]
    root = Line.through(tokens, middle).root
    points = ", ".join(f"{1e3 * s:+.3g} ms at {n}" for n, s in zip(tokens, middle, strict=True))
    if root is None:
        told = "the line does not rise: longer prompts save nothing more"
    else:
        told = f"the line is above zero from {root:.0f} visual tokens on"
        if 0 < root < tokens[0]:
            told += f", fewer than in the smallest prompt measured ({tokens[0]})"
        elif root > tokens[-1]:
            told += f", more than in the largest prompt measured ({tokens[-1]})"
    rounds = sorted(math.inf if (r := Line.through(tokens, s).root) is None else r for s in zip(*saved, strict=True))
    edge = (len(rounds) - 1) // 4
    ends = ["never" if math.isinf(end) else f"{end:.0f}" for end in (rounds[edge], rounds[-1 - edge])]
    return root, (
        f"least-squares line through what it saves of the time to first token (medians of {len(rounds)} rounds: {points}); "
        f"{told}; a line for each round, the middle half of them: {' to '.join(ends)}"
    )


def measure_break_even(setting: Setting, sizes: Sequence[tuple[int, float]] = SIZES) -> list[dict[str, Any]]:
    """Time single prompts of several sizes to the first token, with and without each plan.

    Args:
        setting: model, plans and rounds.
        sizes: (pictures of a prompt, share of their usual side). A model whose pictures have one size gives the same
            number of tokens for smaller ones; these are left out, and so are prompts that do not fit into memory.

    Returns:
        For each plan its ``label``, ``visual_tokens`` (None if it never pays) and ``why``.
    """
    model, made = setting.model, dict[int, dict[str, Any]]()
    for images, share in sorted(sizes, key=lambda size: (size[1] != 1.0, size)):
        fed = setting.prompts(1, images, share)
        visual = tokens_of(model, fed)[0]
        if visual not in made and not tried(partial(_once, setting, None, fed))[1]:
            made[visual] = fed
    fits: dict[str, list[int]] = {}
    faults: dict[str, str] = {}
    for entry in setting.entries:
        found = {n: tried(partial(_once, setting, entry.plan, made[n]))[1] for n in sorted(made)}
        fits[entry.label] = [n for n, fault in found.items() if not fault]
        faults[entry.label] = "; ".join(f"not at {n}: {fault}" for n, fault in found.items() if fault)
    out = []
    for start in range(0, len(setting.entries), GROUP):
        group = setting.entries[start : start + GROUP]
        jobs = {f"{n}|{STOCK}": _job(setting, None, fed) for n, fed in made.items()}
        jobs |= {f"{n}|{e.label}": _job(setting, e.plan, made[n]) for e in group for n in fits[e.label]}
        what = f"break-even, group {start // GROUP + 1} of {-(-len(setting.entries) // GROUP)}"
        times = setting.times(jobs, what)
        for entry in group:
            both = [(times[f"{n}|{STOCK}"].wall, times[f"{n}|{entry.label}"].wall) for n in fits[entry.label]]
            saved = [[a - b for a, b in zip(stock, mine, strict=True)] for stock, mine in both]
            tokens, why = break_even(fits[entry.label], saved)
            why += f"; {faults[entry.label]}" if faults[entry.label] else ""
            out.append({"label": entry.label, "visual_tokens": tokens, "why": why})
    return out


def _job(setting: Setting, plan: Plan | None, fed: dict[str, Any]) -> Job:
    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        with setting.attached(plan):
            yield lambda: prefill(setting.model, fed)

    return go


def _once(setting: Setting, plan: Plan | None, fed: dict[str, Any]) -> None:
    with _job(setting, plan, fed)() as work:
        work()
