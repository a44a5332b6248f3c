"""Schedules set by hand, given the arithmetic of one that was searched: what a search has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...plan import Plan
from ..inside import FAR, Gauge, nearest
from ..stats import accuracy, paired

if TYPE_CHECKING:
    from .search import Trial

HAND = ("fastv", "pdrop")


def rivals(trial: Trial, plan: Plan, by_hand: tuple[str, ...] = HAND) -> list[dict[str, Any]]:
    """Methods with the ``keep`` at which they cost what a schedule costs, on the samples of a trial.

    Args:
        trial: samples that the schedule was not chosen on.
        plan: the schedule.
        by_hand: names of methods; others of their options stay as they are.

    Returns:
        For the schedule and for each method its ``plan``, ``layers`` (counted arithmetic of the decoder layers and of
        choosing over the uncompressed layers', on the first batch), ``equal`` (whether that is near enough), and shares of
        the samples with intervals: ``agreement``, ``accuracy`` and, of the others, ``behind`` (schedule minus method, paired).
    """
    gauge = Gauge(trial.model, trial.processor, [trial.batches[0][1]])
    target = gauge.arithmetic(plan)[0]
    plans = [plan]
    for name in by_hand:

        def costs(keep: float, name: str = name) -> float:
            return gauge.arithmetic(Plan.of(name, keep))[0]

        plans.append(Plan.of(name, nearest(costs, target, {})))
    rows, ours = [], trial.outcomes(trial.answers(plan)[0])
    for each in plans:
        said, share = trial.answers(each)[0], gauge.arithmetic(each)[0]
        row = {"plan": str(each), "layers": share, "equal": abs(share - target) <= FAR * target}
        row |= {"samples": len(said), "agreement": accuracy(trial.same(said))}
        if trial.known:
            row["accuracy"] = accuracy(trial.right(said))
        rows.append(row if each is plan else row | {"behind": paired(ours, trial.outcomes(said))})
    return rows
