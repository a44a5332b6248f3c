"""Claims about what to choose tokens by: attention, similarity, diversity, the question; and how merged ones are placed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..grid.conditions import CLEAN
from ..grid.results import Place
from .claim import Claim, Judgement, MissingError, above, below, each, every, sized
from .evidence import DETAIL, FIVE, Array, Evidence, Outcomes
from .plans import GUIDED, MERGED, MERGING, NUMBERED
from .probes import LOOKED, ranked_key, tower

SAME = 0.8  # rank correlation: what "nearly the same" stands for
APART = 0.5  # what "contradict each other" stands for, from above
IMPORTANCE = ("fastervlm", "vtc_cls", "fopru", "hired", "hiprune", "globalcom2", "flowcut")
DIVERSITY = ("divprune", "todre", "floc")
RELEVANCE = ("trim", "simignore")


def extra_key(plan: str, positions: str = "original") -> str:
    """Key of a plan's row in the extra grid."""
    return Place(CLEAN).key(plan if positions == "original" else f"{plan} ({positions} positions)")


def pairs(matrices: Array) -> Array:
    """(samples, pairs) what is above the diagonal of (samples, l, l)."""
    one, other = np.triu_indices(matrices.shape[1], 1)
    return matrices[:, one, other]


def _q13(e: Evidence) -> Judgement:
    t = e.table("ranked")
    keeps = sorted(LOOKED, reverse=True)
    early = "layer 1"
    gaps = {k: t.accuracy([ranked_key(tower(), k)])[:, 0] - t.accuracy([ranked_key(early, k)])[:, 0] for k in keeps}
    high = e.span(np.mean([gaps[k] for k in keeps[1:]], axis=0))
    grows = e.span(gaps[keeps[-1]] - gaps[keeps[0]])
    layers = sorted({key.split("@")[0] for key in t.right if key.startswith("layer ")})
    k = keeps[-1]
    table = {name: float(t.accuracy([ranked_key(name, k)])[0, 0]) for name in (tower(), *layers)}
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in table.items())
    why = (
        f"[CLS] less {early}, tokens chosen before the model: {high.points()} at {' and '.join(map(str, keeps[1:]))} tokens; "
        f"from {keeps[0]} to {k} tokens the gap grows by {grows.points()}. Accuracy at {k} tokens by source of attention: "
        f"{told}."
    )
    numbers: dict[str, Any] = {"gap": high.data(), "growth": grows.data(), "at_least_tokens": table, "n": t.n}
    return Judgement(every([above(high), above(grows)]), why, numbers)


def _q15(e: Evidence) -> Judgement:
    g, found = e.table("grid"), np.array(e.probe("looks")["tower"])
    alike = e.mean(pairs(found).mean(1))
    keeps = [k for k in g.keeps if k <= 64] or g.keeps[-1:]
    gains = [g.accuracy(g.keys(["vtc_cls", "flowcut", "fastervlm"], k)) for k in keeps]
    gain = e.span(np.mean([a[:, :2].mean(1) - a[:, 2] for a in gains], axis=0))
    why = (
        f"Rank correlation of [CLS] attention between two blocks of the tower: {alike.plain()} on average "
        f"({len(found)} pictures). Over several blocks (`vtc_cls`, `flowcut`) less one (`fastervlm`) at "
        f"{' and '.join(map(str, keeps))} tokens: {gain.points()}."
    )
    numbers: dict[str, Any] = {"correlation": alike.data(), "matrix": found.mean(0).tolist(), "gain": gain.data()}
    return Judgement(every([below(alike, APART), above(gain)]), why, numbers)


def _q16(e: Evidence) -> Judgement:
    found = np.array(e.probe("looks")["layers"])
    if found.shape[1] < 3:
        raise MissingError("the language model has fewer than three layers")
    rest, first = e.mean(pairs(found[:, 1:, 1:]).mean(1)), e.mean(found[:, 0, 1:].mean(1))
    why = (
        f"Rank correlation of the text's attention to visual tokens, between two layers after the first: {rest.plain()}; "
        f"between the first layer and another: {first.plain()} ({len(found)} prompts)."
    )
    numbers: dict[str, Any] = {
        "after_the_first": rest.data(),
        "with_the_first": first.data(),
        "matrix": found.mean(0).tolist(),
    }
    return Judgement(above(rest, SAME), why, numbers)


def _q18(e: Evidence) -> Judgement:
    found = {name: np.array(values) for name, values in e.probe("stable").items()}
    deep = max(name for name in found if name.startswith("fastv"))
    apart = e.mean(found["flashvlm"] - found[deep])
    spans = {name: e.mean(values) for name, values in found.items()}
    told = ", ".join(f"{name} {span.value:.2f}" for name, span in spans.items())
    why = (
        f"Tokens kept with and without faint noise on the picture, Jaccard index: {told} ({len(found[deep])} prompts). "
        f"Similarity (`flashvlm`) less attention before the last layer (`{deep}`): {apart.plain()}."
    )
    return Judgement(above(apart), why, {"apart": apart.data()} | {name: s.data() for name, s in spans.items()})


def _group(g: Outcomes, names: tuple[str, ...], keep: int) -> Array:
    have = [name for name in names if name in g.fair]
    if not have:
        raise MissingError(f"none of {', '.join(names)} is in the grid")
    return g.accuracy(g.keys(have, keep)).mean(1)


def _q20(e: Evidence) -> Judgement:
    g = e.table("grid")
    gaps = {
        name: {k: _group(g, group, k) - _group(g, IMPORTANCE, k) for k in g.keeps}
        for name, group in (("diversity", DIVERSITY), ("relevance", RELEVANCE))
    }
    most, least = g.keeps[0], g.keeps[-1]
    spans = {name: e.span(gap[least]) for name, gap in gaps.items()}
    grows = {name: e.span(gap[least] - gap[most]) for name, gap in gaps.items()}
    verdicts = [every([above(spans[name]), above(grows[name])]) for name in gaps]
    told = "; ".join(f"{name} {spans[name].points()}, {grows[name].points()} more than at {most}" for name in gaps)
    why = f"Against importance at {least} tokens: {told}."
    numbers: dict[str, Any] = {name: {"gap": spans[name].data(), "growth": grows[name].data()} for name in gaps}
    groups = {"importance": IMPORTANCE, "diversity": DIVERSITY, "relevance": RELEVANCE}
    numbers["groups"] = {name: [m for m in group if m in g.fair] for name, group in groups.items()}
    return Judgement(each(verdicts), why, numbers)


def _q22(e: Evidence) -> Judgement:
    t = e.table("extra")
    rows = {how: [extra_key(f"{name}:keep={MERGED}/image", how) for name in MERGING] for how in NUMBERED}
    values = {how: t.accuracy(keys) for how, keys in rows.items()}
    repaired = e.span((values["preserved"] - values["original"]).mean(1))
    anew = e.span((values["contiguous"] - values["original"]).mean(1))
    single = {name: e.span(values["preserved"][:, i] - values["original"][:, i]) for i, name in enumerate(MERGING)}
    told = ", ".join(f"{name} {100 * span.value:+.1f}" for name, span in single.items())
    why = (
        f"Several positions per merged token less one, at {MERGED} tokens: {repaired.points()} ({told}). Positions counted "
        f"anew, less that of the anchor: {anew.points()}."
    )
    numbers: dict[str, Any] = {"preserved_less_one": repaired.data(), "contiguous_less_one": anew.data(), "n": t.n}
    return Judgement(sized(repaired, 0.02), why, numbers | {"by_method": {n: s.data() for n, s in single.items()}})


def _q25(e: Evidence) -> Judgement:
    t, gaps = e.table("extra"), {}
    for k in GUIDED:
        for name, without in (
            ("cdpruner", f"cdpruner_without_question:keep={k}/image"), ("flashvlm", f"flashvlm:keep={k}/image,text=0.0")
        ):  # fmt: skip
            both = t.accuracy([extra_key(f"{name}:keep={k}/image"), extra_key(without)], DETAIL)
            gaps[f"{name} at {k}"] = both[:, 0] - both[:, 1]
    gain = e.span(np.mean(list(gaps.values()), axis=0))
    told = ", ".join(f"{name} {100 * gap[0]:+.1f}" for name, gap in gaps.items())
    n = int(np.isin(t.slices, DETAIL).sum())
    why = f"With the question less without, on {n} questions about details: {gain.points()} ({told} points)."
    return Judgement(
        above(gain), why, {"gain": gain.data(), "by_row": {name: float(gap[0]) for name, gap in gaps.items()}}
    )


CLAIMS = (
    Claim(
        "Q13", "Attention of the text inside the language model is a poor guide to visual tokens, most of all when few are "
        "kept; attention of [CLS] in the tower is better.", ("FasterVLM (arXiv:2412.01818)",),
        f"Both choose at the same place, before the language model, {', '.join(map(str, sorted(LOOKED, reverse=True)))} tokens "
        "per image: by [CLS] in the tower's last used block, or by the last prompt token in layer 1 (counted from 0), where "
        "FastV looks, in a run of the whole prompt. Supported if [CLS] is better below the largest budget and its lead grows "
        "towards the smallest; not supported if either is the other way round.",
        ("ranked",), _q13, FIVE,
    ),
    Claim(
        "Q15", "Attention of single layers of the tower contradicts that of others; adding up several is better.",
        ("FlowCut (arXiv:2505.19536)", "VTC-CLS (arXiv:2412.05819)"),
        f"Supported if the mean rank correlation between blocks is below {APART} and methods that look at several blocks beat "
        "the same attention of one, at 64 tokens and fewer; not supported if either is shown to be otherwise.",
        ("grid", "looks"), _q15,
    ),
    Claim(
        "Q16", "Attention ranks visual tokens nearly the same in every layer of the language model but the first.",
        ("G-Search (arXiv:2412.00556)",),
        f"Rank correlation between layers after the first, mean over pairs and prompts. Supported above {SAME}, not supported "
        "below.",
        ("looks",), _q16, FIVE,
    ),
    Claim(
        "Q18", "Deep attention maps are noisy and choose unstably when few tokens are kept; explicit similarity is steadier.",
        ("FlashVLM (arXiv:2512.20561)",),
        "Tokens kept of the same picture with and without noise of 2 % of the range, 32 per image, as Jaccard index. Supported "
        "if `flashvlm` changes less than attention before the last layer, not supported if more.",
        ("stable",), _q18, "`flashvlm` also weighs in attention of the tower, as its paper does.",
    ),
    Claim(
        "Q20", "Diversity and relevance to the question are sturdier criteria than importance, most of all when few tokens are "
        "kept.", ("ToDRE (arXiv:2505.18757)", "DivPrune (arXiv:2503.02175)"),
        f"Mean of methods at the same tokens: diversity ({', '.join(DIVERSITY)}) and relevance ({', '.join(RELEVANCE)}), each "
        f"against importance ({', '.join(IMPORTANCE)}). Each holds if it is better at the smallest budget and its lead is larger "
        "there than at the largest. Supported if both hold, not supported if both fail; undecided if only one does.",
        ("grid",), _q20, "Relevance is measured in the language model's embedding space, not by a trained text encoder.",
    ),
    Claim(
        "Q22", "Merging without regard to positions hurts; keeping the positions of what was merged repairs it.",
        ("PPE (arXiv:2510.22936): +2 % to +5 %",),
        f"{', '.join(MERGING)} at {MERGED} tokens: a merged token carries several positions, or its anchor's. Supported if "
        "several are better, not supported if they bring less than 2 points.",
        ("extra",), _q22, "Nothing was trained with such positions; most of PPE's results are of trained models.",
    ),
    Claim(
        "Q25", "Choosing by sight alone loses what the question is about; with the question it is found again.",
        ("Recoverable Compression (arXiv:2409.01179)", "QG-VTC"),
        "The same method with and without the question (`cdpruner` with equal relevance of all tokens, `flashvlm` with no weight "
        f"on text) at {' and '.join(map(str, GUIDED))} tokens, on questions about small regions ({', '.join(DETAIL)}). Supported "
        "if better with the question, not supported if worse.",
        ("extra",), _q25,
    ),
)  # fmt: skip
