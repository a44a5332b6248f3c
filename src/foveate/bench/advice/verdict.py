"""What ``foveate advise`` says: a row for each plan, and the answer in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..tasks import Task
from ..times.timing import quartiles
from . import sequential
from .targets import Targets, about, points

if TYPE_CHECKING:
    from .advise import Asking, Candidate


ORDER = ("accepted", "undecided", "not needed", "refused", "left out")


def result(
    task: Task, targets: Targets, found: Sequence[Candidate], asking: Asking, stock: dict[str, Any]
) -> dict[str, Any]:
    """Plain data on all plans.

    Args:
        task: the samples in the order in which they were asked.
        targets: what was asked for.
        found: all plans, decided.
        asking: those that were asked questions.
        stock: what is known of the uncompressed model; its answers are added.
    """
    best, n = asking.best(), len(asking.stock)
    if n and not asking.same:
        stock = stock | {"n": n, "right": sum(asking.stock), "accuracy": sum(asking.stock) / n}
        low, high = sequential.bounds([n - stock["right"], stock["right"]], (0, 1), asking.level)
        stock |= {"low": low, "high": high}
    order = sorted(found, key=lambda one: (one is not best, ORDER.index(one.verdict), one.rank))
    rows = [row(one, task, asking) for one in order]
    said = no(found, targets, asking) if best is None else yes(best, found, targets, asking, stock)
    return {
        "targets": targets.texts(),
        "measure": "changed answers" if asking.same else "drop in accuracy",
        "uncompressed": stock,
        "rows": rows,
        "recommended": None if best is None else best.entry.label,
        "plan": None if best is None or best.entry.plan is None else best.entry.plan.to_dict(),
        "answer": said,
    }


def row(one: Candidate, task: Task, asking: Asking) -> dict[str, Any]:
    """One plan as plain data; keys that do not apply are absent."""
    plan = one.entry.plan
    found: dict[str, Any] = {
        "label": one.entry.label,
        "plan": None if plan is None else plan.to_dict(),
        "verdict": one.verdict,
        "why": one.why,
        "target_missed": one.failed,
    }
    if one.tokens:
        found |= {"tokens_per_image": one.entering, "tokens_over_layers": one.tokens, "tokens_largest": one.most}
    if one.ratios:
        found["first_token"] = {
            "seconds": statistics.median(one.seconds),
            "seconds_quartiles": list(quartiles(one.seconds)),
            "over": one.ratio,
            "quartiles": list(quartiles(one.ratios)),
            "rounds": len(one.ratios),
        }
    if one.changes:
        n = len(one.changes)
        found |= {"n": n, "right": one.right, "accuracy": one.right / n, "drop": one.drop, "low": one.low}
        found |= {"high": one.high, "gained": one.counts((-1,))[0], "lost": one.counts((1,))[0]}
        found["slices"] = slices(one, task, asking)
    if one.more is not None:
        found["more_samples"] = one.more
    return found


def slices(one: Candidate, task: Task, asking: Asking) -> dict[str, dict[str, float]]:
    """Drop by slice, with bounds that hold for all slices together."""
    names, found = task.slices(), {}
    for name in names if len(names) > 1 else ():
        among = {i for i, _ in one.changes if task.samples[i].slice == name}
        if among:
            counts = one.counts(asking.values, among)
            low, high = sequential.bounds(counts, asking.values, asking.level / len(names))
            drop = sum(c * v for c, v in zip(counts, asking.values, strict=True)) / len(among)
            found[name] = {"n": len(among), "drop": drop, "low": low, "high": high}
    return found


# -- sentences ---------------------------------------------------------------------------------------------------------


def lost(one: Candidate, same: bool) -> str:
    """Its drop with bounds and the number of samples."""
    what = "changed answers" if same else "drop"
    numbers = f"{100 * one.drop:.1f} points ({100 * one.low:.1f} to {100 * one.high:.1f})"
    return f"{what} {numbers} on {len(one.changes)} samples"


def yes(best: Candidate, found: Sequence[Candidate], targets: Targets, asking: Asking, stock: dict[str, Any]) -> str:
    """The recommendation."""
    low, high = quartiles(best.ratios)
    text = f"Use {best.entry.label}: {best.tokens:.0f} visual tokens per image instead of {stock['tokens_per_image']:.0f}, "
    text += f"first token {best.ratio:.2f}x ({low:.2f} to {high:.2f}), {lost(best, asking.same)}."
    if targets.drop is None:
        text += " No largest drop was named: this is the smallest of the plans that meet the targets."
    if waiting := [one for one in found if one.verdict == "undecided"]:
        first = min(waiting, key=lambda one: one.high)
        text += (
            f" Faster, but not shown to be good enough: {first.entry.label}, {lost(first, asking.same)}{_more(first)}."
        )
    return text + _faint(stock)


def no(found: Sequence[Candidate], targets: Targets, asking: Asking) -> str:
    """Why nothing is recommended, by the last target that plans reached."""
    text = "Do not compress"
    if waiting := [one for one in found if one.verdict == "undecided"]:
        first = min(waiting, key=lambda one: one.high)
        assert targets.drop is not None
        text += f" on this evidence: no plan is shown to lose at most {points(targets.drop)}. Neither recommended nor refuted: "
        return f"{text}{first.entry.label}, {lost(first, asking.same)}{_more(first)}."
    by = {name: [one for one in found if one.failed == name] for name in ("drop", "time", "tokens")}
    rest = " that meets the other targets" if by["tokens"] or (by["drop"] and by["time"]) else ""
    if by["drop"]:
        first = min(by["drop"], key=lambda one: one.drop)
        assert targets.drop is not None
        text += f": every plan{rest} loses more than {points(targets.drop)}. The least: {first.entry.label}, "
        return f"{text}{lost(first, asking.same)}."
    if by["time"]:
        quick = min(by["time"], key=lambda one: one.ratio)
        low, high = quartiles(quick.ratios)
        asked = targets.texts().get("first token", "faster than uncompressed")
        return (
            f"{text}: no plan{rest} brings the first token to {asked}. The fastest: {quick.entry.label}, "
            f"{quick.ratio:.2f}x ({low:.2f} to {high:.2f}), {1000 * statistics.median(quick.seconds):.4g} ms."
        )
    if by["tokens"]:
        small = min(by["tokens"], key=lambda one: one.tokens)
        text += f": no plan comes to {targets.texts()['visual tokens']}. The fewest: {small.entry.label}, "
        return f"{text}{small.tokens:.0f} per image, {small.share:.3g} of all."
    return f"{text}: no plan runs on this model and these samples. {found[0].entry.label}: {found[0].why}."


def _faint(stock: dict[str, Any]) -> str:
    """A model that is hardly ever right has nothing to lose."""
    if stock.get("accuracy", 1.0) > 0.2:
        return ""
    right = f"{100 * stock['accuracy']:.1f} % of the samples"
    return f" Careful: the uncompressed model itself is right on {right}, so that little can be lost. Does --score fit?"


def _more(one: Candidate) -> str:
    return "" if one.more is None else f"; {about(one.more)} more samples would decide, if it goes on like this"
