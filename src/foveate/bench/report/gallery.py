"""Which tokens plans of a grid kept, drawn on a few of its pictures; the testbed runs once more for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ...errors import FoveateError
from .digest import BASELINES, STOCK, Digest, budget, place

PLANS = 5  # besides the baselines


def gallery(result: dict[str, Any], count: int, load: Callable[[], tuple[Any, Any]] | None, keep: str = "") -> str:
    """HTML of what was kept, or a sentence that says why there is none.

    Args:
        result: of a grid, checked.
        count: samples to show.
        load: gives the testbed and its processor.
        keep: budget; the middle one if empty or not measured.
    """
    if result["model"]["name"] != "testbed":
        return "<p>Kept tokens are drawn for the testbed only, which can be loaded and asked again; this is another model.</p>"
    if not count or load is None:
        return "<p>No pictures were asked for; <code>foveate report --pictures 3</code> adds them.</p>"
    digest = Digest(result, keep)
    rows = [row for row in digest.at(digest.keep) if row.get("plan") and place(row) != "cache"]
    best = [row for row in rows if row["method"] not in BASELINES][:PLANS]
    basic = {row["method"]: row for row in reversed(rows) if row["method"] in BASELINES}  # one seed of each
    rows = [row for row in rows if row in best or row in basic.values()]
    from ... import testbed

    whole = {sample.id: sample for sample in testbed.samples(result["slices"])}
    samples = [whole.get(sample["id"]) for sample in result["samples"]]
    said = {label: result["answers"][f"{label}|clean|turn"] for label in (STOCK, *(row["label"] for row in rows))}
    right = {
        label: [
            sample is not None and testbed.correct(text, sample) for text, sample in zip(texts, samples, strict=True)
        ]
        for label, texts in said.items()
    }
    chosen = telling(samples, right, count)
    if not chosen:
        return "<p>No sample of this result is about one picture without earlier turns.</p>"
    model, processor = load()
    text = (
        f"<p>At {budget(digest.keep)}: kept tokens are lit, dropped ones dimmed; places whose tokens were merged into a kept one "
        "are tinted. Of each slice the page shows a question that the uncompressed model gets right and about half of these "
        "plans get wrong, if there is one; none was chosen by hand.</p>"
    )
    for i in chosen:
        answers = {label: (texts[i], right[label][i]) for label, texts in said.items()}
        text += _sample(digest, rows, samples[i], answers, model, processor)
    return text


def telling(samples: Sequence[Any], right: Mapping[str, Sequence[bool]], count: int) -> list[int]:
    """Samples to show: of each slice, one that tells the rows apart; slices in their order.

    Only questions about one picture, without earlier turns: they can be shown whole.

    Args:
        samples: of the testbed; None where it has no such sample.
        right: outcomes by label, the uncompressed model's among them.
        count: at most so many.
    """
    rows = [outcomes for label, outcomes in right.items() if label != STOCK]
    best: dict[str, tuple[bool, float, int]] = {}
    for i, sample in enumerate(samples):
        if sample is not None and len(sample.images) == 1 and not sample.history:
            far = abs(sum(outcomes[i] for outcomes in rows) - len(rows) / 2)
            found = (not right[STOCK][i], far, i)
            best[sample.slice] = min(best.get(sample.slice, found), found)
    return [i for _, _, i in best.values()][:count]


def _sample(
    digest: Digest,
    rows: Sequence[Mapping[str, Any]],
    sample: Any,
    answers: Mapping[str, tuple[str, bool]],
    model: Any,
    processor: Any,
) -> str:
    """One question: the picture as it is, and what each plan kept of it."""
    from ... import lens, testbed
    from ...attach import compress
    from ...plan import Plan
    from ..runner import prefill, prepared

    inputs = testbed.inputs(processor, [sample])
    fed, shown = prepared(model, inputs), lens.seen(sample.images, inputs, processor)[0]
    panels = [_panel(shown, STOCK, f"{digest.stock['tokens_per_image']:.0f} tokens", *answers[STOCK])]
    for row in rows:
        plan = Plan.of(row["plan"])
        try:
            with compress(model, plan, processor=processor) as run:
                prefill(model, fed)
        except FoveateError:
            continue  # a plan that refuses this machine's model; its numbers stand in the tables
        assert run.report is not None
        one = run.report.images[0]
        drawn = lens.picture(shown, one, plan=plan)
        panels.append(_panel(drawn, digest.name(row), f"{len(one.survivors)} tokens", *answers[row["label"]]))
    return (
        f"<section><b>{escape(sample.question)}?</b> <span class=soft>right answer: {escape(sample.answer)}; slice "
        f'{escape(sample.slice)}</span><div class="grid">{"".join(panels)}</div></section>'
    )


def _panel(image: Any, name: str, tokens: str, said: str, right: bool) -> str:
    from ..page import inline

    verdict = "right" if right else "wrong"
    return (
        f'<figure><img src="{inline(image)}" alt="{escape(name)}, {tokens}, {verdict}" width="{image.width}" '
        f'height="{image.height}"><figcaption>{escape(name)} <span class=soft>{tokens}</span><br>'
        f'<span class="{verdict}">{escape(said) or "(nothing)"}</span></figcaption></figure>'
    )
