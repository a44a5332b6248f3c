"""Claims about what happens to a picture inside the language model."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import require
from .choice import extra_key
from .claim import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Judgement, MissingError, above, every
from .evidence import FIVE, STOCK_KEY, Array, Evidence
from .plans import CACHED, LEFT, MEANS, gone, late, most_gone, shapes, texted
from .probes import FOUND, PLACES, ranked_key, skip_key

SMALL = -0.05  # of the answers: what "without loss" may lose
BIASED = 0.1  # of the mean: what positions may differ by
HALF = 0.5


def _against(e: Evidence, plan: object, table: str = "extra") -> Array:
    """(draws + 1,) change of accuracy by a plan of the extra grid."""
    both = e.table(table).accuracy([extra_key(str(plan)), STOCK_KEY])
    return both[:, 0] - both[:, 1]


def _apart(mean: Array) -> Array:
    """(draws,) largest less smallest of (draws, 2, places) over their mean: chosen on one half, measured on the other.

    Chosen and measured on the same pictures, places without any bias would differ, too.
    """
    one, other = mean[:, 0], mean[:, 1]
    found = []
    for chosen, measured in ((one, other), (other, one)):
        ends = np.stack([chosen.argmax(1), chosen.argmin(1)], 1)
        values = np.take_along_axis(measured, ends, 1)
        found.append((values[:, 0] - values[:, 1]) / measured.mean(1))
    return np.mean(found, axis=0)


def _q17(e: Evidence) -> Judgement:
    found = {name: np.array(values) for name, values in e.probe("place").items()}
    spans = {}
    for name, shares in found.items():
        halves = shares[: len(shares) // 2 * 2].reshape(-1, 2, shares.shape[1])
        spans[name] = e.over(halves, lambda some: _apart(some.mean(-1)))
    cells = {name: shares.mean(0).tolist() for name, shares in found.items()}
    told = ", ".join(f"{name} {span.percent()}" for name, span in spans.items())
    n = len(next(iter(found.values())))
    why = (
        f"Attention at the best less that at the worst of {PLACES * PLACES} places, of the mean, {n} pictures: {told}."
    )
    verdict = every([above(span, BIASED) for span in spans.values()])
    return Judgement(verdict, why, {"spread": {n: s.data() for n, s in spans.items()}, "places": cells})


def _q28(e: Evidence) -> Judgement:
    d, half, ranked = e.depth, math.ceil(e.depth / 2), e.table("ranked")
    if ranked.slices.tolist() != e.table("extra").slices.tolist():
        raise MissingError("plans and given scores were not asked the same questions")
    some = {
        k: _against(e, most_gone(k)) for k in range(1, d)
    }  # the same tokens, gone from layer k on, or from the start
    start = {k: ranked.accuracy([ranked_key(f"layer {k - 1}", LEFT), STOCK_KEY]) for k in some}
    none = {k: e.span(_against(e, gone(k))) for k in some}
    kept = e.span(some[half])
    early = e.span(some[half] - (start[half][:, 0] - start[half][:, 1]))
    told = "; ".join(
        f"{k}: {100 * some[k][0]:+.1f}, {100 * (both[0, 0] - both[0, 1]):+.1f} and {100 * none[k].value:+.1f}"
        for k, both in start.items()
    )
    why = (
        f"{LEFT} tokens from layer {half} of {d} on: {kept.points()}; that is {early.points()} against the same tokens from the "
        f"start. By layer, {LEFT} tokens from there on, the same from the start, and none from there on: {told} points."
    )
    numbers: dict[str, Any] = {"from_half": kept.data(), "half_less_start": early.data()}
    numbers["from"] = {k: e.span(draws).data() for k, draws in some.items()}
    numbers["from_the_start"] = {k: e.span(both[:, 0] - both[:, 1]).data() for k, both in start.items()}
    numbers["none_from"] = {k: s.data() for k, s in none.items()}
    return Judgement(every([above(kept, SMALL), above(early)]), why, numbers)


def _q29(e: Evidence) -> Judgement:
    rows = {mean: {name: _against(e, plan) for name, plan in shapes(mean, e.depth).items()} for mean in MEANS}
    mean = {name: np.mean([rows[m][name] for m in MEANS], axis=0) for name in ("falling", "flat", "rising")}
    flat, rising = e.span(mean["falling"] - mean["flat"]), e.span(mean["falling"] - mean["rising"])
    told = "; ".join(
        f"mean {m:g}: " + ", ".join(f"{name} {100 * draws[0]:+.1f}" for name, draws in each.items())
        for m, each in rows.items()
    )
    why = f"Falling less flat: {flat.points()}; falling less rising: {rising.points()}. Against uncompressed, {told} points."
    numbers: dict[str, Any] = {"falling_less_flat": flat.data(), "falling_less_rising": rising.data()}
    numbers["against_uncompressed"] = {
        str(m): {k: e.span(v).data() for k, v in each.items()} for m, each in rows.items()
    }
    numbers["plans"] = {str(m): {name: str(plan) for name, plan in shapes(m, e.depth).items()} for m in MEANS}
    return Judgement(every([above(flat), above(rising)]), why, numbers)


def _q31(e: Evidence) -> Judgement:
    first = max(1, round(e.depth / 4))
    spans = {k: e.span(_against(e, late(k))) for k in range(1, e.depth)}
    told = ", ".join(f"{k}: {100 * span.value:+.1f}" for k, span in spans.items())
    why = f"The picture enters before layer {first} of {e.depth}: {spans[first].points()}. By layer: {told} points."
    return Judgement(above(spans[first], SMALL), why, {"enters_before": {k: span.data() for k, span in spans.items()}})


def _q36(e: Evidence) -> Judgement:
    spearman = require("scipy.stats", "report").spearmanr
    ranks, t = np.array(e.probe("looks")["rank"]).mean(0), e.table("ranked")
    both = t.accuracy([*(skip_key(i) for i in range(e.depth)), STOCK_KEY])
    drops = both[:, -1:] - both[:, :-1]
    if np.ptp(ranks) == 0 or np.ptp(drops[0]) == 0:
        raise MissingError("all layers are alike, so that there is nothing to correlate")
    rho = float(spearman(ranks, drops[0]).statistic)
    orders = list(itertools.permutations(range(e.depth)))
    more = sum(abs(spearman(ranks, drops[0][list(order)]).statistic) >= abs(rho) - 1e-9 for order in orders)
    p = more / len(orders)
    told = ", ".join(
        f"{i}: {rank:.0f}, {100 * drop:+.1f}" for i, (rank, drop) in enumerate(zip(ranks, drops[0], strict=True))
    )
    verdict = UNDECIDED if p >= 1 - e.level else SUPPORTED if rho > 0 else NOT_SUPPORTED
    why = (
        f"Rank correlation of effective rank and loss over {e.depth} layers: {rho:+.2f} (exact p {p:.2f}). Effective rank and "
        f"points lost by layer: {told}."
    )
    numbers: dict[str, Any] = {
        "correlation": rho,
        "p": p,
        "rank": ranks.tolist(),
        "loss": [e.span(d).data() for d in drops.T],
    }
    return Judgement(verdict, why, numbers)


def _q37(e: Evidence) -> Judgement:
    states = {name: np.array(values) for name, values in e.probe("looks")["states"].items()}
    apart = e.mean((states["image"] - states["text"]).mean(1))
    means = {name: e.mean(values.mean(1)) for name, values in states.items()}
    skipped, all_of_them = e.span(_against(e, "ima")), e.span(_against(e, "ima:interval=1"))
    why = (
        f"Cosine of a token's states before and after a layer: visual {means['image'].plain()}, text {means['text'].plain()}, "
        f"difference {apart.plain()}. Without the feed-forward network for visual tokens in every other layer: "
        f"{skipped.points()}; in all but the first and last: {all_of_them.points()}."
    )
    numbers: dict[str, Any] = {name: span.data() for name, span in means.items()} | {
        "apart": apart.data(),
        "skipped": skipped.data(),
    }
    numbers |= {"by_layer": {name: values.mean(0).tolist() for name, values in states.items()}}
    return Judgement(every([above(apart), above(skipped, SMALL)]), why, numbers)


def _q40(e: Evidence) -> Judgement:
    needle = e.probe("needle")
    found, recall = np.array(needle["found"]), np.array(needle["recall"])
    early = range(math.ceil(found.shape[1] / 2))
    wide = replace(e, level=1 - (1 - e.level) / len(early))  # the best of several is chosen
    spans = [wide.mean(found[:, i]) for i in range(found.shape[1])]
    best = max(early, key=lambda i: spans[i].value)
    told = ", ".join(f"{i}: {100 * span.value:.0f} %" for i, span in enumerate(spans))
    why = (
        f"All patches of the text asked for are among the {FOUND} of {needle['tokens']} tokens that the last prompt token "
        f"looks at most in layer {best}: {spans[best].percent()} of {len(found)} pictures. By layer: {told}; a random choice "
        f"would hold them in {100 * needle['chance']:.0f} %. `gemfilter` looks at layer {needle['layer']} unless told otherwise."
    )
    numbers: dict[str, Any] = {"found": [s.data() for s in spans], "recall": recall.mean(0).tolist()}
    return Judgement(above(spans[best], HALF), why, numbers | {"layer": best, "chance": needle["chance"]})


def _q41(e: Evidence) -> Judgement:
    mass = {name: np.array(values) for name, values in e.probe("looks")["mass"].items()}
    apart = e.mean((mass["text"] - mass["image"]).mean(1))
    each = {name: e.mean(mass[name].mean(1)) for name in mass}
    t, gaps = e.table("extra"), {}
    for k in CACHED:
        both = t.accuracy([extra_key(str(texted(k, True))), extra_key(str(texted(k, False)))])
        gaps[k] = both[:, 0] - both[:, 1]
    first = e.span(np.mean(list(gaps.values()), axis=0))
    told = ", ".join(f"{k}: {100 * gap[0]:+.1f}" for k, gap in gaps.items())
    why = (
        f"Of its attention in the prompt the text pays {each['text'].percent()} to text and {each['image'].percent()} to the "
        f"picture, mean over layers. Text first in the cache less the same rule for all: {first.points()} (by entries {told})."
    )
    numbers: dict[str, Any] = {
        "apart": apart.data(),
        "text_first": first.data(),
        "by_layer": {n: v.mean(0).tolist() for n, v in mass.items()},
    }
    return Judgement(every([above(apart), above(first)]), why, numbers)


CLAIMS = (
    Claim(
        "Q17", "Scores from [CLS] or from attention of the language model depend on where a token lies in the picture.",
        ("ApET (arXiv:2602.19870)",),
        f"Every picture is shown {PLACES * PLACES} times, shifted around by thirds, so that everything in it is at every place "
        f"once; only questions without words of place. Without bias all places then get the same attention. Supported if the "
        f"best and the worst, found on half of the pictures, differ on the other half by over {100 * BIASED:.0f} % of the mean for "
        "both scores; not supported if by less for one.",
        ("place",), _q17, "That such scores are not to be had from fused kernels is a question of time: see what choosing costs.",
    ),
    Claim(
        "Q28", "Most visual tokens matter in early layers only, where they feed the text.", ("LLaVA-Mini (arXiv:2501.03895)",),
        f"{LEFT} tokens per image run from some layer on, those that the last prompt token looks at most in the layer before; "
        "and the same tokens alone from the start. Supported if from half the depth on the others can be spared for less than "
        f"{-100 * SMALL:.0f} points, but not from the start; not supported if they cannot, or do no good in early layers either.",
        ("extra", "ranked"), _q28, f"{FIVE} All visual tokens gone is shown beside.",
    ),
    Claim(
        "Q29", "The deeper a layer, the more of the visual tokens it can do without.", ("p-MoD (arXiv:2412.04449)",),
        f"The same number of tokens summed over the layers ({', '.join(f'{m:g}' for m in MEANS)} of all), falling with depth, "
        "flat after the first layer, or rising (the picture enters late). Supported if falling is better than both, not "
        "supported if worse than one.",
        ("extra",), _q29, "Falling and flat schedules choose by attention, which the first layers may not do well; a rising one "
        "chooses nothing.",
    ),
    Claim(
        "Q31", "Shallow layers hardly use the picture, so that it can enter late.", ("HiDrop (arXiv:2602.23699)",),
        f"All visual tokens enter before a layer, and those before it run on text alone; judged at a quarter of the depth. "
        f"Supported if less than {-100 * SMALL:.0f} points are lost, not supported if more.",
        ("extra",), _q31, f"HiDrop trains the model this way; here nothing is trained. {FIVE}",
    ),
    Claim(
        "Q36", "The rank of a layer's attention maps tells whether it is needed.", ("gamma-MoD (arXiv:2410.13859)",),
        "Effective rank (exponential of the entropy of singular values) of the maps, against what is lost when visual tokens "
        "pass a layer unchanged. Supported if they rise together, not supported if opposed: exact permutation test of the rank "
        "correlation.",
        ("looks", "ranked"), _q36, "Five layers are very few for a correlation.",
    ),
    Claim(
        "Q37", "States of visual tokens change slowly from layer to layer, so that work on them can be left out.",
        ("IMA (arXiv:2405.16700)",),
        "Cosine of each token's states before and after a layer. Supported if it is higher for visual tokens than for text, and "
        f"`ima` loses less than {-100 * SMALL:.0f} points; not supported if either is otherwise.",
        ("looks", "extra"), _q37,
    ),
    Claim(
        "Q40", "Early layers already single out the tokens of a prompt that the answer needs.", ("GemFilter (arXiv:2409.17422)",),
        f"New pictures of labels and tags, drawn with a map of what is where. The needle is all patches of the letters asked "
        f"for. Supported if, in the best layer of the first half (the paper, too, finds one for each model), it is whole among the "
        f"{FOUND} tokens that the last prompt token attends to most in over {100 * HALF:.0f} % of the pictures, not supported if "
        "in fewer; corrected for choosing the layer.",
        ("needle",), _q40, f"The paper is about text; these are pictures. {FIVE}",
    ),
    Claim(
        "Q41", "While the prompt runs, a model attends more to text than to pictures; so text should stay in the cache first.",
        ("LOOK-M (arXiv:2406.18139)",),
        f"Attention of the text after the picture, to text and to the picture, summed. And `lookm` at "
        f"{' and '.join(map(str, CACHED))} entries with text first, or with none favoured. Supported if both point that way, not "
        "supported if one points the other way.",
        ("looks", "extra"), _q41, "Prompts are short: some ten tokens of text to 576 of the picture; a single one of text gets "
        "far more than one of the picture.",
    ),
)  # fmt: skip
