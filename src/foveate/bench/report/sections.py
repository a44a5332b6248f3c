"""What a report says of an accuracy grid: what was measured, what came out, and the charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from .breakdown import agreement, conditions, difference, everything, kind, once, refused, share, slices, split, sure
from .digest import BASELINES, PLACES, STOCK, Digest, beyond, budget, change, percent, place
from .figures import Chart, Series, small
from .sheet import Part, Run, facts, folded, machine, made, panel, plan, shape, table
from .timesheet import time_table

TIMED = ("before", "layers")  # places that change the time to the first token


def grid(result: dict[str, Any], files: Sequence[str], anchor: str, keep: str = "", pictures: str = "") -> Run:
    """Everything about one grid.

    Args:
        result: what its file holds, checked.
        files: their names.
        anchor: of its heading, and the beginning of all others.
        keep: budget that is shown first.
        pictures: HTML of what was kept, or why it is left out.
    """
    digest = Digest(result, keep)
    model = result["model"]
    made_parts = [
        ("tokens", "Accuracy and tokens", tokens(digest)),
        ("time", "Accuracy and time", times(digest)),
        ("slices", "Slices", slices(digest)),
        ("split", "Simple and difficult samples", split(digest)),
        ("agreement", "Agreement with the uncompressed model", agreement(digest)),
        ("conditions", "Degraded pictures", conditions(digest)),
        ("once", "Selection made once", once(digest)),
        ("pictures", "What was kept", pictures),
        ("rows", "All rows", everything(digest)),
        ("refused", "Refused plans", refused(digest)),
        ("made", "How this was made", made(result, files)),
    ]
    parts = [Part(f"{anchor}-{name}", title, html) for name, title, html in made_parts if html]
    task = "" if result["task"] == model["name"] else f" on {named(result['task'])}"
    return Run(anchor, f"Accuracy of {named(model['name'])}{task}", intro(digest), parts)


def named(name: str) -> str:
    """A model or a task in a sentence."""
    return "the testbed" if name == "testbed" else name


def intro(digest: Digest) -> str:
    """What was measured, and what came out, in words and large numbers."""
    result, stock = digest.result, digest.stock
    methods = {row["method"] for row in digest.rows} - {STOCK}
    others = f" {len(digest.refused)} rows were refused." if digest.refused else ""
    asked = f" at keep = {', '.join(digest.budgets)}" if digest.budgets else ""
    text = (
        f'<p class="lead">{len(methods)} methods{escape(asked)} on <b>{escape(named(result["model"]["name"]))}</b> '
        f"({escape(shape(result['model']))}), each asked the same {stock['n']} questions in {len(result['slices'])} slices of "
        f"{escape(named(result['task']))}. Uncompressed, the model reads {stock['tokens_per_image']:.0f} visual tokens per "
        f"image.{others}</p><p>{escape(result.get('note', ''))}</p>"
        f'<p class="soft">Greedy answers; {escape(machine(result["environment"]))}. Accuracies carry 95 % Wilson intervals; '
        "differences are paired on the same samples, carry 95 % bootstrap intervals over samples, and have a ▼ or ▲ if that "
        "interval leaves zero out; p is McNemar's exact test.</p>"
    )
    entries = [(f"{percent(stock['accuracy'])} %", "right answers, uncompressed", f"{sure(stock)}, n = {stock['n']}")]
    where = next((where for where in PLACES if digest.at(digest.keep, where)), "before")
    rows, at = digest.at(digest.keep, where), f"{PLACES[where]} at {budget(digest.keep)}"
    best = next((row for row in rows if row["method"] not in BASELINES), None)
    basic = next((row for row in rows if row["method"] in BASELINES), None)
    count = len({row["method"] for row in rows} - set(BASELINES))
    for row, what in ((best, f"the best of {count} methods {at}"), (basic, f"the best baseline {at}")):
        if row is not None:
            known = f"{sure(row)}; against uncompressed {change(row['against_uncompressed'])}"
            entries.append((f"{percent(row['accuracy'])} %", f"{digest.name(row)}, {what}", known))
    if rows:
        worse = sum(beyond(row["against_uncompressed"]) < 0 for row in rows)
        what = f"plans {at} are worse than the uncompressed model beyond chance"
        entries.append((f"{worse} of {len(rows)}", what, "95 % interval of the paired difference below zero"))
    fast = next((row for row in digest.front if beyond(row["against_uncompressed"]) >= 0), None)
    if fast is not None:
        time = fast["time"]["first_token"]
        known = f"quartiles {' to '.join(f'{q:.3f}' for q in time['quartiles'])}; " if "quartiles" in time else ""
        known += change(fast["against_uncompressed"])
        what = f"of the time to the first token: {fast['label']}, the fastest plan that is not worse beyond chance"
        entries.append((f"{time['over']:.2f} \N{MULTIPLICATION SIGN}", what, known))
    chosen = "The best were chosen on the same samples, which flatters them a little." if best else ""
    return text + facts(entries) + f'<p class="soft">{chosen}</p>'


def tokens(digest: Digest) -> str:
    """Charts of accuracy against tokens, one per place; all methods in small; areas."""
    drawn = [found for where in PLACES if (found := digest.tokens(where)) is not None]
    if not drawn:
        return ""
    text = (
        "<p>Each point is a budget; the line at the top is the uncompressed model with its interval. Coloured lines are the "
        "best methods of their place, grey dashed lines the baselines. Points at the same budget are drawn a little apart, so "
        "that their intervals can be seen. <i>Area</i> is the accuracy averaged over the logarithm of the tokens asked for; it "
        "compares methods at the same budgets.</p>"
    )
    text += f'<div class="charts">{"".join(panel(chart) for chart, _ in drawn)}</div>'
    for chart, every in drawn:
        beside = next((s for s in chart.series if s.baseline and s.name == "random"), None)
        beside = beside or next((s for s in chart.series if s.baseline), None)
        context = f"; the dashed grey line is {beside.name}" if beside else ""
        whole = replace(chart, series=every)  # which may reach further than the chart of the best
        tiles = "".join(_tile(whole, series, beside) for series in every)
        low, high = (percent(end, 0) for end in whole.y_range())
        note = f'<p class="soft">All on the same axes, {low} to {high} % accuracy; the thin line is uncompressed{context}.</p>'
        text += folded(
            f"All {len(every)} methods {chart.title.removeprefix('Methods ')}", f'{note}<div class="tiny">{tiles}</div>'
        )
    if digest.area:
        rows = []
        for name in sorted(digest.area, key=lambda n: (-digest.area[n], n)):
            mine = [row for row in digest.plain if row["method"] == name]
            row = mine[0]
            asked = ", ".join(k for k in digest.budgets if any(r["keep"] == k for r in mine))
            rows.append((kind(row), [escape(name), percent(digest.area[name]), PLACES[place(row)], escape(asked)]))
        head = ["method", "area, %", "where it works", "budgets"]
        text += folded(
            "Rate-accuracy area of every method", table(head, rows, label="rate-accuracy area", words=(2, 3))
        )
    return text


def _tile(chart: Chart, series: Series, beside: Series | None) -> str:
    note = f'<br><span class="soft">{escape(series.note)}</span>' if series.note else ""
    other = None if beside is None or beside.name == series.name else beside
    return f"<figure>{small(chart, series, other)}<figcaption>{escape(series.name)}{note}</figcaption></figure>"


def times(digest: Digest) -> str:
    """Accuracy against measured time, the plans that no other beats, and every time."""
    timed = [row for row in digest.rows if row.get("time")]
    if not timed:
        return ""
    charts = [chart for where in TIMED if (chart := digest.times(where)) is not None]
    text = ""
    if charts:
        text = (
            "<p>Time to the first token of the whole model, vision tower and selection included, over the uncompressed model "
            "in the same rounds: left is faster, above 1 is slower than not compressing. Bars along the time axis are quartiles, "
            "those along the accuracy axis 95 % intervals.</p>"
            f'<div class="charts">{"".join(panel(chart) for chart in charts)}</div>'
        )
    if digest.front:
        rows = []
        for row in digest.front:
            time = row["time"]["first_token"]
            ends = " to ".join(f"{q:.3f}" for q in time.get("quartiles", ()))
            cells = [plan(row["label"]), f"{time['over']:.3f} <small>{ends}</small>", share(row)]
            rows.append((kind(row), [*cells, difference(row["against_uncompressed"])]))
        text += "<h4>Plans that no other beats in both</h4>" + table(
            ["plan", "first token, over uncompressed", "accuracy, %", "difference, points"],
            rows,
            label="best plans by time",
        )
    return text + folded(f"All times ({len(timed)} rows)", time_table(timed))
