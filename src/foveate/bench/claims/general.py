"""Claims about baselines, tasks and benchmarks: all of them read the grid."""

from __future__ import annotations

import math
import statistics

import numpy as np

from ..grid.conditions import CLEAN
from ..grid.results import Place
from ..stats import mcnemar, wilson
from .claim import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Judgement, MissingError, Span, above, every
from .evidence import DETAIL, READING, SIMPLE, STOCK_KEY, Array, Evidence, Outcomes

MANY = 0.25  # of the methods: what "many" and "better than expected" stand for
MOST = 0.6  # of the tokens gone: what "most" stands for
MUCH = 0.05  # of the answers: what "much more" stands for
UNIPRUNE = "UniPruneBench (Can Visual Input Be Compressed?)"
VTC = "VTC-Bench (arXiv:2510.07143)"
LLMC = "LLMC+"


def _crowd(e: Evidence) -> Outcomes:
    """The grid, with methods enough to say "many" of.

    Raises:
        MissingError: with fewer than ten.
    """
    g = e.table("grid")
    if len(g.fair) < 10:
        raise MissingError(f"{len(g.fair)} published methods before the language model in the grid are too few")
    return g


def beaten(g: Outcomes, rival: dict[int, Array]) -> Array:
    """(draws + 1,) share of the fair methods that are below a baseline at the same tokens, over all budgets."""
    return np.stack([(g.accuracy(g.keys(g.fair, k)) < rival[k][:, None]).mean(1) for k in g.keeps]).mean(0)


def _at(g: Outcomes, rival: dict[int, Array], keep: int) -> dict[str, object]:
    methods = g.accuracy(g.keys(g.fair, keep))[0]
    return {
        "baseline": float(rival[keep][0]), "median_method": float(np.median(methods)),
        "below_it": [name for name, value in zip(g.fair, methods, strict=True) if value < rival[keep][0]],
    }  # fmt: skip


def _q1(e: Evidence) -> Judgement:
    g = _crowd(e)
    rival = {k: g.seeds(k) for k in g.keeps}
    share, lost = e.span(beaten(g, rival)), {k: e.span(g.accuracy([STOCK_KEY])[:, 0] - rival[k]) for k in g.keeps}
    most, least = g.keeps[0], g.keeps[-1]
    why = (
        f"A random choice is better than {share.percent()} of {len(g.fair)} methods at the same tokens; it loses "
        f"{100 * lost[most].value:.1f} points at {most} tokens and {100 * lost[least].value:.1f} at {least}."
    )
    numbers = {"share_below": share.data(), "loss": {k: s.data() for k, s in lost.items()}, "methods": g.fair}
    return Judgement(above(share, MANY), why, numbers | {"at": {k: _at(g, rival, k) for k in g.keeps}})


def _q2(e: Evidence) -> Judgement:
    g = e.table("grid")
    slices = list(dict.fromkeys(g.slices.tolist()))
    cells = [(k, s) for k in g.keeps for s in slices]
    tests, worst = len(cells) * len(g.fair) * (len(g.fair) - 1) // 2, dict.fromkeys(g.fair, 1.0)
    won: dict[str, int] = dict.fromkeys(g.fair, 0)
    for k, s in cells:
        right = np.stack([g.right[key][g.slices == s] for key in g.keys(g.fair, k)])
        better = (right @ (1 - right).T).astype(int)  # [i, j]: samples that i has right and j wrong
        total = right.sum(1)
        for j, name in enumerate(g.fair):
            won[name] += bool(total[j] == total.max())
            rivals = [i for i in range(len(g.fair)) if better[i, j] > better[j, i]]
            worst[name] = min([worst[name], *(mcnemar(int(better[i, j]), int(better[j, i])) for i in rivals)])
    unbeaten = [name for name, p in worst.items() if p * tests >= 1 - e.level]
    best = max(won, key=lambda name: won[name])
    why = (
        f"{len(g.fair) - len(unbeaten)} of {len(g.fair)} methods are worse than another in some of {len(cells)} cells (slice x "
        f"budget) beyond chance; the most frequent winner, {best}, is first or level in {won[best]} of them."
    )
    if unbeaten:
        why += f" Not shown to be worse anywhere: {', '.join(unbeaten)}."
    numbers = {"cells": len(cells), "tests": tests, "smallest_p": worst, "first_or_level": won, "unbeaten": unbeaten}
    return Judgement(UNDECIDED if unbeaten else SUPPORTED, why, numbers)


def _drops(g: Outcomes, keep: int) -> Array:
    """(draws + 1, methods, slices) accuracy lost."""
    return g.by_slice([STOCK_KEY]) - g.by_slice(g.keys(g.fair, keep))


def _q3(e: Evidence) -> Judgement:
    g = e.table("grid")
    names = list(dict.fromkeys(g.slices.tolist()))
    if not set(READING) <= set(names) or len(names) < 4:
        raise MissingError(f"the grid lacks slices: {', '.join(READING)} and two others")
    lost = np.mean([_drops(g, k).mean(1) for k in g.keeps], axis=0) / np.maximum(g.by_slice([STOCK_KEY])[:, 0], 1e-9)
    reading = lost[:, [names.index(s) for s in READING]].mean(1)
    others = [i for i, s in enumerate(names) if s not in READING]
    apart = e.span(reading - lost[:, others].max(1))
    order = sorted(range(len(names)), key=lambda i: -lost[0, i])
    told = ", ".join(f"{names[i]} {100 * lost[0, i]:.0f} %" for i in (*order[:3], order[-1]))
    why = (
        f"Reading loses {100 * reading[0]:.0f} % of its accuracy; that is {apart.points()} against the hardest-hit other "
        f"slice. Mean of {len(g.fair)} methods and {len(g.keeps)} budgets, most to least: {told}."
    )
    numbers = {"reading_less_next": apart.data(), "relative_loss": {n: float(lost[0, i]) for i, n in enumerate(names)}}
    return Judgement(above(apart), why, numbers)


def squares(lost: Array) -> dict[str, Array]:
    """Shares of the sum of squares of a loss (draws, methods, budgets, slices) by factor, each (draws,)."""
    middle = lost.mean((1, 2, 3), keepdims=True)
    whole = np.maximum(((lost - middle) ** 2).mean((1, 2, 3)), 1e-12)
    axes = {"method": 1, "budget": 2, "task": 3}
    main = {
        name: lost.mean(tuple(a for a in (1, 2, 3) if a != axis), keepdims=True) - middle for name, axis in axes.items()
    }
    found = {name: (part**2).mean((1, 2, 3)) / whole for name, part in main.items()}
    for one, other in (("method", "budget"), ("method", "task"), ("budget", "task")):
        left = ({1, 2, 3} - {axes[one], axes[other]}).pop()
        both = lost.mean(left, keepdims=True) - middle - main[one] - main[other]
        found[f"{one} x {other}"] = (both**2).mean((1, 2, 3)) / whole
    found["all three"] = 1 - sum(found.values())
    return found


def _q4(e: Evidence) -> Judgement:
    g = e.table("grid")
    parts = squares(np.stack([_drops(g, k) for k in g.keeps], 2))
    apart = e.span(parts["budget"] - np.maximum(parts["method"], parts["task"]))
    spans = {name: e.span(draws) for name, draws in parts.items()}
    told = ", ".join(f"{name} {100 * span.value:.0f} %" for name, span in spans.items())
    why = (
        f"Of the variance of the loss over {len(g.fair)} methods, {len(g.keeps)} budgets and {len(_names(g))} slices: {told}. "
        f"The budget's share less the larger of method's and task's: {apart.points()}."
    )
    return Judgement(above(apart), why, {"apart": apart.data()} | {name: s.data() for name, s in spans.items()})


def _names(g: Outcomes) -> list[str]:
    return list(dict.fromkeys(g.slices.tolist()))


def _q5(e: Evidence) -> Judgement:
    g = _crowd(e)
    rival = {k: g.accuracy(g.keys(["resize"], k))[:, 0] for k in g.keeps}
    share, least = e.span(beaten(g, rival)), g.keeps[-1]
    medians = {k: float(np.median(g.accuracy(g.keys(g.fair, k))[0])) for k in g.keeps}
    k = g.keeps[0]
    why = (
        f"A smaller picture is better than {share.percent()} of {len(g.fair)} methods; it has {100 * rival[k][0]:.1f} % at "
        f"{k} tokens and {100 * rival[least][0]:.1f} % at {least}, the median method {100 * medians[k]:.1f} % and "
        f"{100 * medians[least]:.1f} %."
    )
    return Judgement(
        above(share, MANY), why, {"share_below": share.data(), "at": {k: _at(g, rival, k) for k in g.keeps}}
    )


def _q6(e: Evidence) -> Judgement:
    g = e.table("grid")
    known, easy, gaps, spread = g.right[STOCK_KEY] == 1, [], [], {}
    for k in g.keeps:
        small = g.right[g.key("resize", k)] == 1
        keys = g.keys(g.fair, k)
        simple, difficult = (g.accuracy(keys, mask=known & (small == want)) for want in (True, False))
        gaps.append((simple - difficult).mean(1))
        easy.append(g.accuracy([g.key("resize", k)], mask=known)[:, 0])
        spread[k] = {
            "simple": int((known & small).sum()), "difficult": int((known & ~small).sum()),
            "accuracy_simple": float(simple[0].mean()), "accuracy_difficult": float(difficult[0].mean()),
            "deviation_simple": float(simple[0].std()), "deviation_difficult": float(difficult[0].std()),
        }  # fmt: skip
    share, gap = e.span(np.mean(easy, axis=0)), e.span(np.mean(gaps, axis=0))
    k = g.keeps[-1]
    why = (
        f"{share.percent()} of what the uncompressed model gets right is right with a smaller picture, too. Methods are "
        f"{gap.points()} better on these than on the others; between methods the deviation at {k} tokens is "
        f"{100 * spread[k]['deviation_simple']:.0f} points there and {100 * spread[k]['deviation_difficult']:.0f} elsewhere."
    )
    numbers = {"simple_share": share.data(), "gap": gap.data(), "at": spread}
    return Judgement(every([above(share, MANY), above(gap)]), why, numbers)


def _q7(e: Evidence) -> Judgement:
    g = e.table("grid")
    full, spans, told = g.rows[STOCK_KEY]["tokens_per_image"], {}, {}
    for method in ("llavolta", "pool"):
        keep = max((k for k in g.keeps if 1 - _left(g, method, k) / full >= MOST), default=None)
        if keep is None:
            raise MissingError(f"{method} that removes most tokens is not in the grid")
        for name, slices in (("objects", SIMPLE), ("all", None)):
            both = g.accuracy([g.key(method, keep), STOCK_KEY], slices)
            spans[method, name] = e.span(both[:, 0] / np.maximum(both[:, 1], 1e-9) - 1)
        row = g.rows[g.key(method, keep)]
        average = row["tokens_over_layers"] / full
        told[method] = (
            f"{100 * (1 - _left(g, method, keep) / full):.0f} % of the tokens gone ({100 * (1 - average):.0f} % averaged over the "
            f"layers): {_relative(spans[method, 'objects'])} on questions about objects, {_relative(spans[method, 'all'])} on all"
        )
    why = f"Between layers, {told['llavolta']}. Before the language model, {told['pool']}. (Of the uncompressed accuracy.)"
    numbers = {f"{method}, {name}": span.data() for (method, name), span in spans.items()}
    return Judgement(above(spans["llavolta", "objects"], -0.03), why, numbers)


def _at_most(gained: int, lost: int, n: int, alpha: float) -> float:
    """Upper end of the interval of a paired difference, by squares and sums of two Wilson intervals (Newcombe)."""
    z = statistics.NormalDist().inv_cdf(1 - alpha / 2)
    more, less = wilson(gained, n, z)[1] - gained / n, lost / n - wilson(lost, n, z)[0]
    return (gained - lost) / n + math.hypot(more, less)


def _relative(span: Span) -> str:
    return f"{100 * span.value:+.1f} % ({100 * span.low:+.1f} to {100 * span.high:+.1f})"


def _left(g: Outcomes, method: str, keep: int) -> float:
    return g.rows[g.key(method, keep)]["tokens_per_image"]


def _q8(e: Evidence) -> Judgement:
    g = e.table("grid")
    keys = [
        k for k, row in g.rows.items() if k != STOCK_KEY and (row["condition"], row["selection"]) == (CLEAN, "turn")
    ]
    if not keys:
        raise MissingError("the grid has no compressed rows")
    stock, found = g.right[STOCK_KEY], []
    for key in keys:
        change = g.right[key] - stock
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        found.append((gained - lost, gained, lost, mcnemar(gained, lost), g.rows[key]["label"]))
    best = max(found)
    tests, alpha = len(keys), 1 - e.level
    sure = [one for one in found if one[0] > 0 and one[3] * tests < alpha]
    bound = max(_at_most(gained, lost, g.n, alpha / tests) for _, gained, lost, _, _ in found)
    verdict = SUPPORTED if sure else NOT_SUPPORTED if bound < 0.004 else UNDECIDED
    above_it = sum(one[0] > 0 for one in found)
    why = (
        f"{above_it} of {tests} rows are above the uncompressed model, {len(sure)} of them beyond chance when corrected for "
        f"{tests} looks; the best, `{best[4]}`, gains {best[1]} answers and loses {best[2]} of {g.n} "
        f"({100 * best[0] / g.n:+.1f} points, p {best[3]:.2f} before correction)."
    )
    return Judgement(verdict, why, {"rows": tests, "above": above_it, "sure": [one[4] for one in sure], "bound": bound})


def _q9(e: Evidence) -> Judgement:
    g = e.table("grid")
    if "later-turns" not in g.slices or not set(SIMPLE) & set(g.slices):
        raise MissingError("the grid lacks the slice later-turns, or simple ones")
    later, simple, detail, guided = [], [], [], []
    once = Place(CLEAN, "once").key("uncompressed")
    for k in g.keeps:
        for name in g.methods:
            key = g.key(name, k)
            where = Place(CLEAN, "once").key(g.rows[key]["label"])
            mine, stock = (where, once) if where in g and once in g else (key, STOCK_KEY)
            later.append(g.accuracy([stock], ["later-turns"]) - g.accuracy([mine], ["later-turns"]))
            simple.append(g.accuracy([STOCK_KEY], SIMPLE) - g.accuracy([key], SIMPLE))
            detail.append(g.accuracy([STOCK_KEY], DETAIL) - g.accuracy([key], DETAIL))
            if mine == where:
                guided.append(g.accuracy([mine], ["later-turns"]) - g.accuracy([key], ["later-turns"]))
    if not guided:
        raise MissingError("later turns with tokens chosen at the first turn are not in the grid")
    means = [np.mean(part, axis=0)[:, 0] for part in (later, simple, detail, guided)]
    talk, small, turn = e.span(means[0] - means[1]), e.span(means[2] - means[1]), e.span(means[3])
    why = (
        f"Against simple questions of one turn ({100 * means[1][0]:.1f} points lost), later turns lose {talk.points()} more "
        f"and details {small.points()} more. Choosing at the first turn instead of each costs methods that look at the "
        f"question {turn.points()} on later turns."
    )
    numbers = {"later_less_simple": talk.data(), "detail_less_simple": small.data(), "once_less_turn": turn.data()}
    return Judgement(every([above(talk, MUCH), above(small, MUCH)]), why, numbers | {"methods": g.methods})


FAIR = "Published methods before the language model, at exactly the same tokens, all budgets of the grid."
CLAIMS = (
    Claim(
        "Q1", "A random choice of tokens is a far better baseline than one would expect.", (UNIPRUNE,),
        f"{FAIR} Expected is that hardly a method falls behind chance. Supported if the random choice (mean of its seeds) "
        f"beats more than {100 * MANY:.0f} % of the methods, not supported if fewer.",
        ("grid",), _q1,
    ),
    Claim(
        "Q2", "No method is best in all scenarios.", (UNIPRUNE,),
        f"{FAIR} A scenario is a slice at a budget. Supported if every method is worse than some other in some scenario: exact "
        "McNemar tests, Bonferroni over all pairs and scenarios. Otherwise undecided: not to be beaten is no proof of being "
        "best.",
        ("grid",), _q2, "One model: scenarios with other models are not among these.",
    ),
    Claim(
        "Q3", "How much pruning hurts depends strongly on the task, and reading text is hit hardest.", (UNIPRUNE,),
        f"{FAIR} Share of its accuracy that a slice loses; reading-short and reading-dense together against the hardest-hit "
        "other slice. Supported if reading loses more, not supported if less.",
        ("grid",), _q3,
    ),
    Claim(
        "Q4", "The share of tokens kept, more than anything else, decides how much is lost.", (UNIPRUNE,),
        f"{FAIR} Sums of squares of the loss over method x budget x slice. Supported if the budget's main effect is the largest "
        "of the three, not supported if another is larger.",
        ("grid",), _q4, "The model is a fourth factor that one model does not have; the result also depends on which budgets, "
        "methods and tasks were put in.",
    ),
    Claim(
        "Q5", "Simply making the picture smaller beats many advanced methods.", (VTC,),
        f"{FAIR} Supported if `resize` beats more than {100 * MANY:.0f} % of the methods, not supported if fewer.",
        ("grid",), _q5, "The testbed's tower has only ever seen one size of picture, and its text is about as small as can be "
        "read: a large model's tower takes smaller pictures better.",
    ),
    Claim(
        "Q6", "Many questions of a benchmark say nothing about compression; a smaller picture tells which.", (VTC,),
        "Questions that the uncompressed model gets right, split by whether `resize` at the same tokens does. Supported if more "
        f"than {100 * MANY:.0f} % are simple, and methods lose less on these; not supported if either is shown to be otherwise.",
        ("grid",), _q6, "Some questions are simple by a lucky guess.",
    ),
    Claim(
        "Q7", "Average pooling, without training, removes most visual tokens at small cost.",
        ("LLaVolta (arXiv:2406.20092): 70 % of the tokens for 3 % on GQA",),
        f"`llavolta`, which pools between layers as the paper does, at the largest budget that leaves {100 * (1 - MOST):.0f} % or "
        f"fewer; questions about objects ({', '.join(SIMPLE)}), the nearest to GQA. Supported if less than 3 % of the accuracy is "
        "lost, not supported if more. `pool`, which does it before the language model, stands beside.",
        ("grid",), _q7, "Between layers, this model loses little by any way of dropping tokens (Q28).",
    ),
    Claim(
        "Q8", "Compressed models can be better than the uncompressed one.",
        ("ApET (arXiv:2602.19870): 100.4 %", "FlashVLM (arXiv:2512.20561)", "DPN: +0.74 %", "SliME"),
        "All rows on clean pictures. Supported if one has gained beyond chance (exact McNemar test, Bonferroni over the rows); "
        "not supported if every row is shown to gain less than 0.4 points.",
        ("grid",), _q8, "The uncompressed model is close to all right here, which leaves little to gain.",
    ),
    Claim(
        "Q9", "Methods lose much more in later turns of a conversation and on details than on simple questions.", (LLMC,),
        f"Published methods that meet a budget of visual tokens, all budgets. Later turns, with tokens chosen at the first turn "
        f"where the question decides, and details ({', '.join(DETAIL)}) against simple questions. Supported if both lose over "
        f"{100 * MUCH:.0f} points more, not supported if either is shown to lose less than that.",
        ("grid",), _q9,
    ),
)  # fmt: skip
