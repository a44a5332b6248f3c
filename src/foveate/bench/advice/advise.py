"""``foveate advise``: which plan to use on one's own samples for one's own targets, or that none will do, and why.

What costs little comes first: tokens need a prompt or two of each plan, first-token times a few more. Only plans that meet
both are asked questions, block by block, next to the uncompressed model on the same samples. After each block a plan is
accepted, refused or goes on; whatever is slower than an accepted plan is not needed any more. Bounds on the drop are those of
:mod:`foveate.bench.advice.sequential`, with alpha shared out over the plans that are asked: looking after every block, stopping
early and trying many plans are paid for.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from ...attach import compress
from ...errors import FoveateError, UnsupportedError
from ...plan import Plan
from ..environment import environment
from ..runner import STOCK, Entry, answers, prefill, prepared
from ..tasks import Task
from ..times.timing import Job, interleaved, quartiles
from . import sequential
from .data import plain
from .targets import Targets, about, points

CHANGES = (-1, 0, 1)  # of one answer: gained, as before, lost
LOOKED = 8  # prompts on which tokens are counted
FUTILE = 2.0  # a better plan is given up if it would take so many times the samples that there are
UNBOUND = 256  # samples where nothing says when to stop, as no drop was named

Tick = Callable[[str, int, int], None]  # what is measured, steps done, steps in all


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A plan on its way through the measurements.

    Attributes:
        entry: the plan.
        verdict: "open", "accepted", "refused" (a target is missed), "undecided", "not needed" or "left out" (it cannot run).
        why: the reason, for people.
        failed: the target that is missed: "tokens", "time", "drop", or "".
        tokens, most, entering: visual tokens per image over the language model's layers, of the image with most of them, and
            at its first layer.
        share: those tokens of the uncompressed ones.
        idle: it changes nothing on these pictures.
        ratios, seconds: first-token time round by round, of the uncompressed model's and in seconds.
        changes: (sample, change of the answer) as far as it was asked; 1 is lost, -1 gained.
        right: how many of those answers count as right, or as the same.
        low, high: bounds on the drop.
        more: about how many more samples it takes to decide, where it is undecided.
    """

    entry: Entry
    verdict: str = "open"
    why: str = ""
    failed: str = ""
    tokens: float = 0.0
    most: float = 0.0
    entering: float = 0.0
    share: float = 1.0
    idle: bool = False
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)
    right: int = 0
    low: float = -1.0
    high: float = 1.0
    more: int | None = None

    def end(self, verdict: str, why: str, failed: str = "") -> None:
        """Close it with a reason."""
        self.verdict, self.why, self.failed = verdict, why, failed

    def counts(self, values: Sequence[int], among: set[int] | None = None) -> list[int]:
        """How often each change came, over all samples that were asked or those named."""
        found = [change for i, change in self.changes if among is None or i in among]
        return [found.count(value) for value in values]

    @property
    def drop(self) -> float:
        return sum(change for _, change in self.changes) / max(1, len(self.changes))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios) if self.ratios else math.inf

    @property
    def rank(self) -> tuple[float, float, str]:
        """The smaller, the better: first-token time to a hundredth of the uncompressed model's, then tokens."""
        return round(self.ratio, 2), self.tokens, self.entry.label


def count_tokens(model: Any, processor: Any, fed: dict[str, Any], one: Candidate) -> float:
    """Visual tokens of a plan on a batch of prompts; returns those of the uncompressed model, per image.

    Raises:
        FoveateError: if the model or the method refuses the plan, or the samples hold no picture.
    """
    with compress(model, one.entry.plan, processor=processor) as run:
        prefill(model, fed)
    if run.report is None or not run.report.images:
        raise UnsupportedError("the samples hold no picture")
    images = run.report.images
    one.tokens, one.most = run.report.layer_average, max(image.average for image in images)
    one.entering = sum(len(image.kept) - image.structure_out for image in images) / len(images)
    whole = run.report.tokens_in / len(images)
    one.share = one.tokens / max(1.0, whole)
    # Entries of a cache and the work of a layer are no tokens; what depends on content may keep all of some pictures.
    methods = [step.method for step in run.plan.steps]
    one.idle = one.tokens >= whole and all(method.card.count != "content" for method in methods)
    one.idle = one.idle and run.report.cache_bytes is None
    return whole


def time_first_token(
    model: Any,
    processor: Any,
    task: Task,
    found: Sequence[Candidate],
    rounds: int,
    batch: int,
    tick: Callable[[], None] | None = None,
) -> float:
    """Seconds from a prompt's tensors to its first token, vision tower included; every round takes other prompts.

    Returns:
        The uncompressed model's median, in seconds.
    """
    starts = [(i * batch) % max(1, len(task.samples) - batch + 1) for i in range(rounds)]
    prompts = [prepared(model, task.inputs(processor, list(task.samples[s : s + batch]))) for s in starts]

    def work(plan: Plan | None) -> Job:
        turns = count(-1)  # the first call warms up

        @contextmanager
        def go() -> Iterator[Callable[[], Any]]:
            fed = prompts[max(0, next(turns))]
            with nullcontext() if plan is None else compress(model, plan, processor=processor):
                yield lambda: prefill(model, fed)

        return go

    jobs = {STOCK: work(None)} | {one.entry.label: work(one.entry.plan) for one in found}
    times = interleaved(jobs, rounds, device=str(next(model.parameters()).device), tick=tick)
    for one in found:
        mine = times[one.entry.label]
        one.ratios, one.seconds = mine.ratios(times[STOCK]), mine.wall
    return times[STOCK].median()


# -- what is decided ---------------------------------------------------------------------------------------------------


def still(found: Sequence[Candidate]) -> list[Candidate]:
    """Those not decided yet, the best first."""
    return sorted((one for one in found if one.verdict == "open"), key=lambda one: one.rank)


def check_tokens(one: Candidate, whole: float, targets: Targets) -> None:
    """Refuse a plan that keeps too many tokens (a share may be off by rounding to whole ones), leave out one that keeps all."""
    if one.idle:
        one.end("left out", f"it compresses nothing: these pictures have {whole:.4g} tokens")
    if targets.tokens is None or one.verdict != "open":
        return
    amount, unit = targets.tokens
    if unit == "image" and one.most > amount + 1e-6:
        one.end("refused", f"{one.most:.0f} tokens on a picture, not {amount:g}", "tokens")
    elif unit == "share" and one.tokens > amount * whole + 0.5:
        one.end("refused", f"{one.share:.3g} of the tokens, not {amount:g}", "tokens")


def check_time(one: Candidate, targets: Targets) -> None:
    """Refuse a plan that is too slow in more than a quarter of the rounds; without targets of cost, one that saves nothing."""
    if targets.time is not None:
        amount, unit = targets.time
        values, form = (one.ratios, "{:.2f}x") if unit == "x" else ([1000 * s for s in one.seconds], "{:.4g} ms")
        amount = amount if unit == "x" else 1000 * amount
        middle, slow = statistics.median(values), quartiles(values)[1]
        if middle > amount:
            one.end("refused", f"first token {form.format(middle)}, not {form.format(amount)}", "time")
        elif slow > amount:
            one.end("refused", f"a quarter of first tokens over {form.format(slow)}, not {form.format(amount)}", "time")
    elif targets.tokens is None and one.ratio >= 1:
        one.end("refused", f"saves no time: first token {one.ratio:.2f}x", "time")


class Asking:
    """Plans that are asked questions next to the uncompressed model, until each is decided.

    Args:
        found: those that are left, the best first.
        drop: what an answer may lose on average; None asks all questions and decides nothing.
        same: compare with the uncompressed model's answers, not with the right ones.
        alpha: probability, over all plans and looks, that a bound fails.
        available: samples that there are.
    """

    def __init__(
        self, found: Sequence[Candidate], drop: float | None, same: bool, alpha: float, available: int = sequential.MOST
    ) -> None:
        self.found, self.drop, self.same, self.available = list(found), drop, same, available
        self.level = alpha / max(1, len(self.found))
        self.values = CHANGES[1:] if same else CHANGES
        self.stock: list[bool] = []

    def block(self, task: Task, start: int, said: dict[str, list[str]], errors: dict[str, str]) -> None:
        """Take in the answers to samples from number ``start`` on, and decide what can be decided."""
        before = said[STOCK]
        base = [self.same or task.correct(*pair) for pair in zip(before, task.samples, strict=True)]
        self.stock += base
        for one in still(self.found):
            if one.entry.label in errors:
                one.end("left out", errors[one.entry.label].splitlines()[0])
                continue
            mine = said[one.entry.label]
            if self.same:
                right = [plain(a) == plain(b) for a, b in zip(mine, before, strict=True)]
            else:
                right = [task.correct(*pair) for pair in zip(mine, task.samples, strict=True)]
            one.right += sum(right)
            one.changes += [(start + i, int(b) - int(r)) for i, (b, r) in enumerate(zip(base, right, strict=True))]
            one.low, one.high = sequential.bounds(one.counts(self.values), self.values, self.level)
            if self.drop is not None and one.high <= self.drop:
                one.end("accepted", f"at most {points(math.ceil(1e4 * one.high) / 1e4)} lost")
            elif self.drop is not None and one.low > self.drop:
                one.end("refused", f"at least {points(math.floor(1e4 * one.low) / 1e4)} lost", "drop")
        if (best := self.best()) is not None:
            for one in still(self.found):
                if one.rank > best.rank:
                    one.end("not needed", f"{best.entry.label} is better")
                elif (total := self.total(one)) is None or total > FUTILE * self.available:
                    self.give_up(one, "too close to the limit for these samples")

    def best(self) -> Candidate | None:
        return min((one for one in self.found if one.verdict == "accepted"), key=lambda one: one.rank, default=None)

    def close(self) -> None:
        """No more samples: what is still open stays undecided, or without a target the smallest drop is taken."""
        left = still(self.found)
        if self.drop is None and left:
            best = min(left, key=lambda one: (one.drop, one.rank))
            best.end("accepted", "smallest drop of those that meet the targets")
            for one in still(self.found):
                one.end("not needed", f"no smaller drop than {best.entry.label}")
            return
        for one in left:
            self.give_up(one, "samples ran out")

    def total(self, one: Candidate) -> int | None:
        """About how many samples it takes to decide a plan."""
        assert self.drop is not None
        return sequential.needed(one.counts(self.values), self.values, self.drop, self.level)

    def give_up(self, one: Candidate, why: str) -> None:
        """Leave a plan undecided."""
        total = self.total(one)
        one.more = None if total is None else max(1, total - len(one.changes))
        one.end("undecided", why + ("" if one.more is None else f"; {about(one.more)} more would do"))


def advise(
    model: Any,
    processor: Any,
    task: Task,
    targets: Targets,
    entries: Sequence[Entry],
    *,
    score: str = "exact",
    alpha: float = 0.05,
    limit: int | None = None,
    block: int = 32,
    batch: int = 16,
    max_new_tokens: int = 32,
    rounds: int = 8,
    time_batch: int = 1,
    seed: int = 0,
    tick: Tick | None = None,
) -> tuple[Plan | None, dict[str, Any]]:
    """The best plan that is shown to meet the targets on samples of a task, or None; and plain data on all plans.

    The best is the fastest to the first token; of equally fast ones, that with fewer visual tokens. Where no drop is named, it
    is the one with the smallest.

    Args:
        model, processor: as loaded by transformers.
        task: samples, which are asked in random order.
        targets: what a plan has to meet.
        entries: plans to try.
        score: how the task judges answers, for the record; "agreement" compares with the uncompressed model's.
        alpha: probability that a bound on a drop fails, over all plans and looks; a plan that loses more than it may is
            accepted with at most this probability.
        limit: ask at most this many samples.
        block: samples between two looks.
        batch: samples per batch.
        max_new_tokens: longest answer.
        rounds: timed rounds that count, all plans taking turns.
        time_batch: prompts that are timed together.
        seed: of the order of the samples.
        tick: called with what is measured, steps done and steps in all.

    Raises:
        UnsupportedError: if there are no samples or no plans.
    """
    from .verdict import result

    if not task.samples or not entries:
        raise UnsupportedError("nothing to advise on", where=f"{len(task.samples)} samples, {len(entries)} plans")
    order = list(task.samples)
    random.Random(seed).shuffle(order)
    most = limit or (UNBOUND if targets.drop is None else len(order))
    task, available = replace(task, samples=order[:most]), len(order)
    told = tick or (lambda what, done, total: None)
    found = [Candidate(entry) for entry in entries]
    fed, whole = prepared(model, task.inputs(processor, list(task.samples[:LOOKED]))), 0.0
    for i, one in enumerate(found):
        try:
            whole = count_tokens(model, processor, fed, one)
            check_tokens(one, whole, targets)
        except FoveateError as error:
            one.end("left out", error.what)
        told("visual tokens", i + 1, len(found))
    stock_seconds = None
    if left := still(found):
        ticks, total = count(1), (rounds + 1) * (len(left) + 1)
        stock_seconds = time_first_token(
            model, processor, task, left, rounds, time_batch, lambda: told("first token", next(ticks), total)
        )
        for one in left:
            check_time(one, targets)
    asking = Asking(still(found), targets.drop, score == "agreement", alpha, len(task.samples))
    start = 0
    while start < len(task.samples) and (left := still(found)):
        part = replace(task, samples=task.samples[start : start + block])
        entries = [Entry(STOCK, None, STOCK), *(one.entry for one in left)]
        said, _, errors = answers(model, processor, part, entries, batch, max_new_tokens)
        asking.block(part, start, said, errors)
        start += len(part.samples)
        told("answers", start, len(task.samples))
    asking.close()
    protocol = {
        "alpha": alpha, "limit": limit, "block": block, "batch": batch, "max_new_tokens": max_new_tokens, "seed": seed,
        "rounds": rounds, "time_batch": time_batch, "score": score, "plans_asked": len(asking.found),
        "samples_available": available, "samples_asked": start,
    }  # fmt: skip
    parameter = next(model.parameters())
    best = asking.best()
    data = {
        "bench": "advise",
        "schema": 1,
        "protocol": protocol,
        "environment": environment(str(parameter.device), str(parameter.dtype).removeprefix("torch.")),
        "model": {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())},
        "task": task.name,
        "note": task.note,
    }
    stock = {"tokens_per_image": whole or None, "first_token_seconds": stock_seconds}
    return (None if best is None else best.entry.plan), data | result(task, targets, found, asking, stock)
