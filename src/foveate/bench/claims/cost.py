"""Claims about time, and about pictures that are hard to see."""

from __future__ import annotations

import numpy as np

from ... import registry
from ...errors import require
from ..grid.conditions import SEVERITIES
from ..grid.results import STOCK, Place
from .claim import Claim, Judgement, MissingError, Span, above, below, every
from .evidence import Array, Evidence
from .plans import KINDS
from .probes import TIMED

OPEN = 0.5  # rank correlation below which accuracy leaves most of the order by time open
LESS = 0.5  # of the factor in tokens: what "much smaller" stands for
HIDDEN = 0.05  # of the compressed prefill


def _timed(e: Evidence) -> dict[str, dict]:
    found = e.probe("time")
    if len(found) < 4:
        raise MissingError("fewer than four methods were timed")
    return found


def _q12(e: Evidence) -> Judgement:
    tau, g, found = require("scipy.stats", "report").kendalltau, e.table("grid"), _timed(e)
    rows = [(g.accuracy([key])[0, 0], one["whole"]) for label, one in found.items() if (key := Place().key(label)) in g]
    if len(rows) < 4:
        raise MissingError("fewer than four timed methods are in the grid")

    def agreement(some: Array) -> Array:  # (draws, 2, n)
        return np.array([tau(one[0], -one[1]).statistic for one in some])

    both = e.over(np.array(rows), agreement)
    times = [time for _, time in rows]
    slower = sum(time >= 1 for time in times)
    why = (
        f"Kendall's rank correlation of accuracy and speed over {len(rows)} methods at {TIMED} tokens: {both.plain()}. From "
        f"picture to answer they take {min(times):.2f} to {max(times):.2f} of the uncompressed model's time; {slower} save none."
    )
    return Judgement(below(both, OPEN), why, {"correlation": both.data(), "methods": len(rows), "save_nothing": slower})


def _median(e: Evidence, values: list[float]) -> Span:
    return e.over(values, lambda some: np.median(some, -1))


def _q53(e: Evidence) -> Judgement:
    found = list(_timed(e).values())
    factors = {
        "tokens": [one["full"] / one["tokens"] for one in found],
        "flops": [1 / one["flops"] for one in found],
        "prefill": [1 / one["prefill"] for one in found],
        "whole": [1 / one["whole"] for one in found],
    }
    share = _median(e, [whole / tokens for whole, tokens in zip(factors["whole"], factors["tokens"], strict=True)])
    told = {name: float(np.median(values)) for name, values in factors.items()}
    why = (
        f"Medians of {len(found)} methods at {TIMED} tokens: {told['tokens']:.1f} times fewer tokens, {told['flops']:.1f} times "
        f"fewer FLOPs in the prompt, prefill {told['prefill']:.1f} times and picture to answer {told['whole']:.1f} times as "
        f"fast. The last factor over the first: {share.plain()}."
    )
    columns = ("plan", "tokens", "FLOPs of the prompt", "prefill", "picture to answer", "choosing")
    rows = [
        [f"`{label}`", one["tokens"] / one["full"], one["flops"], one["prefill"], one["whole"], one["choosing"]]
        for label, one in sorted(_timed(e).items(), key=lambda item: item[1]["whole"])
    ]
    numbers = {
        "share": share.data(),
        "medians": told,
        "measured": _timed(e),
        "table": {"columns": columns, "rows": rows},
    }
    return Judgement(below(share, LESS), why, numbers)


def _q58(e: Evidence) -> Judgement:
    found = _timed(e)
    before = {label: one for label, one in found.items() if "encoder" not in registry.get(one["method"]).card.stages}
    parts = {label: one["choosing"] / one["prefill"] for label, one in before.items()}
    middle = _median(e, list(parts.values()))
    low, high = min(parts, key=lambda label: parts[label]), max(parts, key=lambda label: parts[label])
    why = (
        f"Choosing and rearranging take {middle.percent()} of the compressed prefill, median of {len(parts)} methods at {TIMED} "
        f"tokens; `{low}` takes {100 * parts[low]:.0f} %, `{high}` {100 * parts[high]:.0f} %."
    )
    return Judgement(above(middle, HIDDEN), why, {"median": middle.data(), "by_method": parts})


def _q83(e: Evidence) -> Judgement:
    t = e.table("harsh")
    labels = list(dict.fromkeys(row["label"] for row in t.rows.values()))
    clean = t.accuracy([Place().key(label) for label in labels])
    lost = {
        (kind, s): clean - t.accuracy([Place(f"{kind}-{s}").key(label) for label in labels])
        for kind in KINDS
        for s in SEVERITIES
    }  # (draws, labels)
    stock = labels.index(STOCK)
    by = {s: np.mean([lost[kind, s] for kind in KINDS], axis=0) for s in SEVERITIES}
    worst, grows = e.span(by[3][:, stock]), e.span(by[3][:, stock] - by[1][:, stock])
    kinds = ", ".join(
        f"{kind} " + " / ".join(f"{100 * lost[kind, s][0, stock]:.0f}" for s in SEVERITIES) for kind in KINDS
    )
    others = "; ".join(
        f"`{label}` " + " / ".join(f"{100 * by[s][0, i]:.0f}" for s in SEVERITIES)
        for i, label in enumerate(labels)
        if i != stock
    )
    why = (
        f"The uncompressed model loses {worst.lost()} at severity 3, {grows.lost()} more than at 1, mean of {len(KINDS)} "
        f"kinds; points lost at 1 / 2 / 3: {kinds}. Compressed, mean of the kinds: {others} ({t.n} questions)."
    )
    numbers = {"at_3": worst.data(), "3_less_1": grows.data(), "n": t.n}
    numbers["lost"] = {
        label: {f"{kind}-{s}": e.span(draws[:, i]).data() for (kind, s), draws in lost.items()}
        for i, label in enumerate(labels)
    }
    return Judgement(every([above(worst), above(grows)]), why, numbers)


CLAIMS = (
    Claim(
        "Q12", "Accuracy does not tell what a method is worth: time has to be measured with it.",
        ("UniPruneBench (Can Visual Input Be Compressed?)",),
        f"Published methods at {TIMED} tokens: rank correlation of accuracy with speed from picture to answer. Supported below "
        f"{OPEN} (accuracy leaves most of the order by time open), not supported above. Interval over methods.",
        ("grid", "time"), _q12,
    ),
    Claim(
        "Q53", "Time falls much less than the number of visual tokens.",
        ("TokenCarve (arXiv:2503.10501): 22 % of the tokens, 1.23 times as fast", "DiViCo",
         "VoCo-LLaMA (arXiv:2406.12275): FLOPs -94.8 %, time -69.6 %"),
        f"Published methods at {TIMED} tokens: the factor in time from picture to answer, over the factor in "
        f"tokens averaged over the layers. Supported if the median is below {LESS}, not supported if above. Interval over methods.",
        ("time",), _q53, "A small model on a processor; its tower costs about as much as its language model. "
        "The table has all ratios to the uncompressed model; choosing is over its prefill.",
    ),
    Claim(
        "Q58", "Reducing tokens brings hidden overhead that has to be engineered away.", ("HiDrop (arXiv:2602.23699)",),
        f"Time in choosing and rearranging, over the prefill that it shortens; methods inside the tower, which shorten that, are "
        f"left out. Supported if the median of the methods is above "
        f"{100 * HIDDEN:.0f} %, not supported if below. Interval over methods.",
        ("time",), _q58, "On a large model the same choosing is a far smaller part.",
    ),
    Claim(
        "Q83", "Blur, noise, compression and little light undermine understanding, and how much depends on their severity.",
        ("CLEAR / MMD-Bench",),
        f"{', '.join(KINDS)} at three severities, mean over kinds. Supported if the uncompressed model loses at severity 3, and "
        "more than at severity 1; not supported if either is otherwise.",
        ("harsh",), _q83,
    ),
)  # fmt: skip
