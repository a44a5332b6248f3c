"""From how many visual tokens on a plan pays: what it saves of the time to the first token, over the size of the prompt."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...families import adapt
from ...plan import Plan
from ..inside import GROUP
from ..runner import STOCK, prefill
from .shapes import tokens_of
from .subject import Setting, tried
from .timing import Job

SIZES = ((1, 0.25), (1, 0.5), (1, 1.0), (2, 1.0), (4, 1.0))  # pictures of a prompt, share of their usual side


@dataclass(frozen=True)
class Curve:
    """Seconds saved over n visual tokens, ``start + slope * n + bend * n**2``: layers grow with n, attention with n squared."""

    start: float
    slope: float
    bend: float

    @classmethod
    def through(cls, tokens: Sequence[float], saved: Sequence[float], scatter: Sequence[float]) -> Curve:
        """By least squares.

        Args:
            tokens: two or more different numbers; of two, and where the curve would bend down, a line.
            saved: seconds at each.
            scatter: how uncertain these are, relative to each other.
        """
        weights = 1 / np.asarray(scatter)
        if len(tokens) > 2:
            bend, slope, start = np.polyfit(tokens, saved, 2, w=weights).tolist()
            if bend >= 0:
                return cls(start, slope, bend)
        slope, start = np.polyfit(tokens, saved, 1, w=weights).tolist()
        return cls(start, slope, 0.0)

    @property
    def root(self) -> float | None:
        """Tokens from which on it is positive: 0 if it is from the first on, None if long prompts never save."""
        if self.bend == 0:
            if self.slope > 0:
                return max(0.0, -self.start / self.slope)
            return 0.0 if self.slope == 0 and self.start > 0 else None
        inner = self.slope**2 - 4 * self.bend * self.start
        return 0.0 if inner < 0 else max(0.0, (math.sqrt(inner) - self.slope) / (2 * self.bend))


def break_even(
    tokens: Sequence[int], stock: Sequence[Sequence[float]], mine: Sequence[Sequence[float]]
) -> tuple[float | None, str]:
    """Below how many visual tokens of a prompt a plan does not pay, and how that was found.

    Times scatter in proportion to themselves, so each point counts by the inverse of the uncompressed model's time.

    Args:
        tokens: visual tokens of prompts, ascending.
        stock, mine: for each of these, seconds to the first token round by round, without and with the plan.

    Returns:
        Tokens (0 if it always pays, None if it never does), and words.
    """
    if len(tokens) < 2:
        return None, f"prompts of two sizes are needed, and {len(tokens)} could be measured"
    saved = [[a - b for a, b in zip(*both, strict=True)] for both in zip(stock, mine, strict=True)]
    scatter, middle = ([statistics.median(each) for each in some] for some in (stock, saved))
    curve = Curve.through(tokens, middle, scatter)
    points = ", ".join(f"{1e3 * s:+.3g} ms at {n}" for n, s in zip(tokens, middle, strict=True))
    if (root := curve.root) is None:
        told = "it does not rise: longer prompts save nothing more"
    else:
        told = f"it stays above zero from {root:.0f} visual tokens on"
        if 0 < root < tokens[0]:
            told += f", fewer than in the smallest prompt measured ({tokens[0]})"
        elif root > tokens[-1]:
            told += f", more than in the largest prompt measured ({tokens[-1]})"
    each = (Curve.through(tokens, some, scatter).root for some in zip(*saved, strict=True))
    rounds = sorted(math.inf if one is None else one for one in each)
    edge = (len(rounds) - 1) // 4
    ends = ["never" if math.isinf(end) else f"{end:.0f}" for end in (rounds[edge], rounds[-1 - edge])]
    return root, (
        f"{'parabola' if curve.bend else 'line'} by least squares through what it saves of the time to first token (medians "
        f"of {len(rounds)} rounds: {points}); {told}; a fit to each round by itself, middle half of them: {' to '.join(ends)}"
    )


def measure_break_even(setting: Setting, sizes: Sequence[tuple[int, float]] = SIZES) -> list[dict[str, Any]]:
    """Time single prompts of several sizes to the first token, with and without each plan.

    Args:
        setting: model, plans and rounds.
        sizes: (pictures of a prompt, share of their usual side). Where pictures have one size, the tower is given smaller
            ones all the same if it can take them; what gives no other number of tokens is left out, and so is what does
            not fit into memory.

    Returns:
        For each plan its ``label``, ``visual_tokens`` (None if it never pays) and ``why``.
    """
    model, made = setting.model, dict[int, Prompt]()
    whole = Prompt(setting.prompts(1, 1, 1.0)).visual(model)
    for images, share in sizes:
        one = Prompt(setting.prompts(1, images, share))
        if share < 1 and one.visual(model) == images * whole:
            one = shrunk(model, one.fed, share) or one
        visual = one.visual(model)
        if visual not in made and not tried(partial(_once, setting, None, one))[1]:
            made[visual] = one
    made = dict(sorted(made.items()))
    fits: dict[str, list[int]] = {}
    faults: dict[str, str] = {}
    for entry in setting.entries:
        found = {n: tried(partial(_once, setting, entry.plan, made[n]))[1] for n in made}
        fits[entry.label] = [n for n, fault in found.items() if not fault]
        faults[entry.label] = "; ".join(f"not at {n}: {fault}" for n, fault in found.items() if fault)
    out = []
    for start in range(0, len(setting.entries), GROUP):
        group = setting.entries[start : start + GROUP]
        jobs = {f"{n}|{STOCK}": _job(setting, None, one) for n, one in made.items()}
        jobs |= {f"{n}|{e.label}": _job(setting, e.plan, made[n]) for e in group for n in fits[e.label]}
        what = f"break-even, group {start // GROUP + 1} of {-(-len(setting.entries) // GROUP)}"
        times = setting.times(jobs, what)
        for entry in group:
            stock, mine = ([times[f"{n}|{label}"].wall for n in fits[entry.label]] for label in (STOCK, entry.label))
            tokens, why = break_even(fits[entry.label], stock, mine)
            why += f"; {faults[entry.label]}" if faults[entry.label] else ""
            out.append({"label": entry.label, "visual_tokens": tokens, "why": why})
    return out


@dataclass(frozen=True)
class Prompt:
    """A batch, and the encoder's arguments if they are not among it."""

    fed: dict[str, Any]
    arguments: dict[str, Any] | None = None

    def visual(self, model: Any) -> int:
        """Its visual tokens."""
        return tokens_of(model, self.fed)[0]

    @torch.inference_mode()
    def first_token(self, model: Any) -> Any:
        """Tower and prefill."""
        if self.arguments is None:
            return prefill(model, self.fed)
        return prefill(model, self.fed, adapt(model).core.get_image_features(**self.arguments, return_dict=True))


def shrunk(model: Any, fed: dict[str, Any], share: float) -> Prompt | None:
    """A prompt with one picture, made smaller where all have one size, and with as many fewer placeholders.

    Args:
        model: one whose pictures are grids of one size.
        fed: the prompt, a batch of one.
        share: of the picture's side that is left.

    Returns:
        The prompt, or None if the tower takes no other size.
    """
    family, ids = adapt(model), fed["input_ids"]
    places = family.placeholders(ids, fed)[0].nonzero()[:, 0]
    if not family.resizable:
        return None
    arguments = family.encoder_arguments(fed)
    grid = family.full_layouts(arguments)[0].grids[0]
    if math.prod(grid) != len(places):
        return None  # several pictures, or tokens around the grid
    high, wide = (max(1, round(side * share)) for side in grid)
    keep = torch.ones_like(ids[0], dtype=torch.bool)
    keep[places[high * wide :]] = False
    fewer = {k: v[:, keep] if isinstance(v, torch.Tensor) and v.shape == ids.shape else v for k, v in fed.items()}
    return Prompt(fewer, family.shrunk(arguments, [(high, wide)]))


def _job(setting: Setting, plan: Plan | None, prompt: Prompt) -> Job:
    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        with setting.attached(plan):
            yield lambda: prompt.first_token(setting.model)

    return go


def _once(setting: Setting, plan: Plan | None, prompt: Prompt) -> None:
    with _job(setting, plan, prompt)() as work:
        work()
