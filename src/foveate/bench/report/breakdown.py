"""A grid taken apart: by slice, by simple and difficult samples, by condition, by selection, and row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from .digest import BASELINES, PLACES, STOCK, Digest, beyond, budget, change, interval, percent, place, signed
from .sheet import folded, plan, table

SIGNS = {-1: "▼ ", 0: "", 1: "▲ "}
KEY = (
    "▼ and ▲ mark differences whose 95 % interval lies below or above zero; without a sign, the rows are not told apart. "
    "Intervals are not corrected for how many there are: of twenty methods that change nothing, about one would get a sign."
)
Rows = Sequence[dict[str, Any]]
BEST_ROWS = {"before": 12, "layers": 5, "cache": 5}  # that a table shows before it is unfolded, without the baselines


def sure(row: dict[str, Any]) -> str:
    """The interval of an accuracy."""
    return interval(row["low"], row["high"])


def kind(row: dict[str, Any]) -> str:
    """The class of a row in a table."""
    return "stock" if row["method"] == STOCK else "basic" if row["method"] in BASELINES else ""


def difference(paired: dict[str, Any], limits: bool = True) -> str:
    """HTML of a paired difference in points: signed, marked if its interval leaves zero out, with that interval."""
    sign = beyond(paired)
    text = f"{SIGNS[sign]}{signed(100 * paired['difference'])}"
    text = f'<span class="{"worse" if sign < 0 else "better"}">{text}</span>' if sign else text
    ends = " to ".join(signed(100 * paired[name]) for name in ("low", "high"))
    return f"{text} <small>{ends}</small>" if limits else text


def share(row: dict[str, Any], n: bool = False) -> str:
    """HTML of an accuracy in percent with its interval."""
    count = f", n = {row['n']}" if n else ""
    return f"{percent(row['accuracy'])} <small>{sure(row)}{count}</small>"


def slices(digest: Digest) -> str:
    """The uncompressed model by slice, and paired differences of every method by slice and budget."""
    result, stock = digest.result, digest.stock
    chance, asked = result.get("chance", {}), {s["slice"]: s for s in reversed(result["samples"])}
    rows = []
    for name, row in stock["slices"].items():
        sample = asked.get(name)
        words = f"{sample['question']} \N{RIGHTWARDS ARROW} {sample['answer']}" if sample else ""
        guess = percent(chance[name]) if chance.get(name) is not None else ""
        rows.append(
            ("", [escape(name), str(row["n"]), percent(row["accuracy"]), sure(row), guess, escape(words[:160])])
        )
    rows.append(("stock", ["all", str(stock["n"]), percent(stock["accuracy"]), sure(stock), "", ""]))
    head = ["slice", "n", "uncompressed, %", "interval", "chance, %", "a question of it"]
    text = table(head, rows, label="uncompressed accuracy by slice", words=(5,))
    if not digest.plain:
        return text
    sizes = sorted({part["n"] for part in stock["slices"].values()})
    n = f"n = {sizes[0]} in each slice" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]} in a slice"
    text += (
        f"<p>Differences to the uncompressed model on the same samples, in points ({n}). {escape(KEY)} The frame marks the slice "
        "that loses most, which the last column names.</p>"
    )
    ordered = sorted(digest.plain, key=lambda row: (-row["accuracy"], row["label"]))
    return text + by_budget(digest, ordered, lambda some: heat(digest, some))


def by_budget(digest: Digest, rows: Rows, draw: Callable[[Rows], str]) -> str:
    """Tables by budget and place: of the first budget the best rows and the baselines, everything else folded."""
    text = ""
    for keep in [digest.keep, *(k for k in [*digest.budgets, ""] if k != digest.keep)]:
        tables = []
        for where, words in PLACES.items():
            here = [row for row in rows if row["keep"] == keep and place(row) == where]
            if here:
                title = f"{words.capitalize()}, {f'keep = {keep}' if keep else budget(keep)}"
                tables.append((title, here, digest.first(here, BEST_ROWS[where])))
        if keep == digest.keep:
            for title, here, first in tables:
                text += f"<h4>{escape(title)}</h4>{draw(first)}"
                text += folded(f"All {len(here)} rows", draw(here)) if len(first) < len(here) else ""
        elif tables:
            whole = "".join(f"<h4>{escape(title)}</h4>{draw(here)}" for title, here, _ in tables)
            text += folded(f"{budget(keep)}: {sum(len(here) for _, here, _ in tables)} rows", whole)
    return text


def heat(digest: Digest, rows: Rows) -> str:
    """Paired differences, methods by slices; the one of the slice that loses most has a frame."""
    sizes = {name: part["n"] for name, part in digest.stock["slices"].items()}
    alike = len(set(sizes.values())) == 1
    head = ["method", "all"] + [escape(n) + ("" if alike else f"<br><small>n = {sizes[n]}</small>") for n in sizes]
    lines = []
    for row in rows:
        worst = row.get("worst", {}).get("slice")
        cells = [plan(digest.name(row)), _cell(row["against_uncompressed"], row["n"], whole=True)]
        for name in sizes:
            part = row["slices"].get(name)
            cells.append("" if part is None else _cell(part["against_uncompressed"], part["n"], name == worst))
        lines.append((kind(row), [*cells, f'<td class="words">{escape(worst or "")}</td>']))
    return table(
        [*head, "worst slice"],
        lines,
        label="paired differences by slice, in points",
        classes="heat",
        words=(len(head),),
    )


def _cell(paired: dict[str, Any], n: int, least: bool = False, whole: bool = False) -> str:
    """A difference on its shade, which grows with its size; of a slice without a decimal if its n leaves none."""
    points, sign = 100 * paired["difference"], beyond(paired)
    level = sum(abs(points) >= step - 1e-9 for step in (1, 5, 10, 20, 40))
    classes = [f"{'w' if points < 0 else 'b'}{level}"] * bool(level) + ["least"] * (least and points < 0)
    shade = f' class="{" ".join(classes)}"' if classes else ""
    text = signed(points, int(100 % n > 0 or whole))
    text = f"<b><i>{SIGNS[sign].strip()}</i> {text}</b>" if sign else text
    return f'<td{shade} title="{change(paired)}, n = {n}">{text}</td>'


def split(digest: Digest) -> str:
    """Simple and difficult samples, as VTC-Bench tells them apart."""
    if not any("simple" in row for row in digest.plain):
        return ""
    text = (
        "<p>Of the samples that the uncompressed model gets right, those are <i>simple</i> that it still gets right when the "
        "whole picture is made smaller, to the same number of tokens (<code>resize</code>); the others are <i>difficult</i>, "
        "and only they can tell methods from making pictures smaller (the split of VTC-Bench, arXiv:2510.07143). "
        "<code>resize</code> itself has all simple and no difficult samples right by construction.</p>"
    )
    rows = [row for row in digest.plain if "simple" in row and "difficult" in row]
    rows.sort(key=lambda row: (-row["difficult"]["accuracy"], -row["simple"]["accuracy"], row["label"]))
    sizes = {row["keep"]: (row["simple"]["n"], row["difficult"]["n"]) for row in rows}
    parts = (f"{sizes[keep][0]} and {sizes[keep][1]} at keep = {keep}" for keep in digest.budgets if keep in sizes)
    text += f"<p>Simple and difficult samples: {escape('; '.join(parts))}.</p>"
    return text + by_budget(digest, rows, lambda some: _split(digest, some))


def _split(digest: Digest, rows: Rows) -> str:
    lines = [(kind(r), [plan(digest.name(r)), *(share(r[n], n=True) for n in ("simple", "difficult"))]) for r in rows]
    return table(["method", "right of the simple, %", "right of the difficult, %"], lines, label="simple and difficult")


def agreement(digest: Digest) -> str:
    """How often the answer is the uncompressed model's own, right or wrong."""
    rows = [row for row in digest.plain if "agreement" in row]
    if not rows:
        return ""
    rank = {name: i for i, name in enumerate(digest.ranked)}
    rows.sort(key=lambda row: (rank[row["method"]], digest.name(row), *digest.order(row["keep"])))
    budgets = [keep for keep in [*digest.budgets, ""] if any(row["keep"] == keep for row in rows)]
    head = ["method", *(escape(f"keep = {keep}" if keep else budget(keep)) for keep in budgets)]
    label = "agreement with the uncompressed answers"

    def lines(some: Rows) -> list[tuple[str, list[str]]]:
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for row in some:
            groups.setdefault(digest.name(row), {})[row["keep"]] = row
        cells = {n: [share(f[k]["agreement"]) if k in f else "" for k in budgets] for n, f in groups.items()}
        return [(kind(next(iter(groups[n].values()))), [plan(n), *cells[n]]) for n in groups]

    text = (
        f"<p>Share of the {digest.stock['n']} samples with the same answer text as the uncompressed model, right or wrong, in %: "
        "it needs no right answers, and shows changes that gains and losses hide in the accuracy.</p>"
    )
    for where, words in PLACES.items():
        here = [row for row in rows if place(row) == where]
        if not here:
            continue
        every = lines(here)
        best = lines([row for row in here if row["method"] in {*BASELINES, *digest.best(where)}]) or every
        best = every if len(every) <= len(best) + 3 else best
        text += f"<h4>{words.capitalize()}</h4>" + table(head, best, label=label)
        text += folded(f"All {len(every)} rows", table(head, every, label=label)) if len(best) < len(every) else ""
    return text


def conditions(digest: Digest) -> str:
    """Accuracy under degraded pictures: budgets by severity."""
    selection, first = digest.stock["selection"], digest.stock["condition"]
    fit = [row for row in digest.rows if row["selection"] == selection]
    names = list(dict.fromkeys(row["condition"] for row in fit))
    if len(names) < 2:
        return ""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in fit:
        groups.setdefault((row["method"], row["keep"], digest.name(row)), {})[row["condition"]] = row
    rank = {name: i for i, name in enumerate([STOCK, *digest.ranked])}
    order = sorted(groups, key=lambda g: (rank.get(g[0], len(rank)), g[2], *digest.order(g[1])))
    lines = {}
    for group in order:
        (_, keep, name), found = group, groups[group]
        if len(found) < 2:
            continue
        cells = [f"{plan(name)} <small>{f'keep = {escape(keep)}' if keep else ''}</small>"]
        for condition in names:
            if condition not in found:
                cells.append("")
                continue
            row = found[condition]
            under = difference(row["against_uncompressed"], False) if row["method"] != STOCK else sure(row)
            cells.append(f'{percent(row["accuracy"])}<small class="under">{under}</small>')
        lines[group] = (kind(next(iter(found.values()))), cells)
    head = ["method", *(escape(name) for name in names)]
    label = "accuracy under degraded pictures"
    best = {STOCK, *BASELINES, *digest.best(count=8)}
    shown = [line for group, line in lines.items() if group[0] in best or len(lines) <= 24]
    text = (
        f"<p>Accuracy in % on pictures that were spoilt before the model saw them, in severities 1 to 3, and on {escape(first)} "
        "ones. Below each, the paired difference in points to the uncompressed model on the same spoilt pictures; of that model "
        f"itself its interval. n = {digest.stock['n']} in every cell. {escape(KEY)}</p>"
    )
    text += table(head, shown, label=label)
    if len(shown) < len(lines):
        text += folded(f"All {len(lines)} rows", table(head, list(lines.values()), label=label))
    return text


def once(digest: Digest) -> str:
    """Tokens chosen once per conversation, beside a choice at every turn, on the same samples."""
    rows = [row for row in digest.rows if row["selection"] == "once"]
    if not rows:
        return ""
    lines = []
    for row in rows:
        turn = digest.at_each_turn(row)
        cells = [plan(row["label"]), escape(row["condition"]), str(row["n"])]
        cells += ["" if turn is None else share(turn), share(row)]
        cells.append("" if turn is None else difference(row["against_turn"]))
        lines.append((kind(row), cells))
    head = ["plan", "pictures", "n", "chosen at each turn, %", "chosen once, %", "once against each turn, points"]
    return (
        "<p>In a conversation, tokens can be chosen anew for each question, or once, for the first question, as a cache that is "
        "kept between turns demands. Both on the same samples, which are those with earlier turns. A method that does not look "
        "at the question chooses the same tokens both times.</p>"
        + table(head, lines, label="selection made once against at each turn", words=(1,))
    )


def everything(digest: Digest) -> str:
    """Every row with everything that was counted, by condition."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in digest.rows:
        groups.setdefault((row["condition"], row["selection"]), []).append(row)
    head = [
        "plan", "stage", "tokens", "over layers", "n", "right", "accuracy, %", "of uncompressed, %", "difference, points",
        "gained", "lost", "p", "same answers, %", "simple, %", "difficult, %", "worst slice, points",
    ]  # fmt: skip
    text = (
        '<p class="soft"><i>tokens</i> enter the language model, per image; <i>over layers</i> is their mean over its layers. '
        "<i>of uncompressed</i> can be above 100. <i>gained</i> and <i>lost</i>: samples that only this row, or only the "
        "uncompressed model, gets right.</p>"
    )
    for (condition, selection), rows in groups.items():
        rows.sort(key=lambda r: (r["method"] != STOCK, *digest.order(r["keep"]), -r["accuracy"], r["label"]))
        lines = [(kind(row), _everything(digest, row)) for row in rows]
        title = f"{condition}, tokens chosen {'at each turn' if selection == 'turn' else 'once'}: {len(rows)} rows"
        text += folded(title, table(head, lines, label=f"all rows, {title}", words=(1, 15)))
    return text


def _everything(digest: Digest, row: dict[str, Any]) -> list[str]:
    said = row["seed"] is None or "seed=" in row["label"]
    seed = "" if said else f" <small>seed {row['seed']}</small>"
    cells = [
        plan(row["label"]) + seed,
        row["stage"],
        f"{row['tokens_per_image']:.1f}",
        f"{row['tokens_over_layers']:.1f}",
    ]
    cells += [str(row["n"]), str(row["right"]), share(row)]
    paired = row.get("against_uncompressed")
    if paired is None:
        return [*cells, "100", *[""] * 8]
    whole = digest.reference(row)["accuracy"]
    cells.append(percent(row["accuracy"] / whole) if whole else "")
    cells += [difference(paired), str(paired["gained"]), str(paired["lost"]), f"{paired['p']:.3g}"]
    cells += [share(row[n], n=n != "agreement") if n in row else "" for n in ("agreement", "simple", "difficult")]
    worst = row.get("worst")
    return [*cells, f"{escape(worst['slice'])} {difference(worst)}" if worst else ""]


def refused(digest: Digest) -> str:
    """Plans that the model or the method refused, and why."""
    if not digest.refused:
        return ""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in digest.refused:
        groups.setdefault((row["error"], row["condition"], row["selection"]), []).append(row["label"])
    lines = []
    for (error, condition, selection), labels in groups.items():
        reason = f'<td class="words wide">{escape(error)}</td>'
        lines.append(("", [", ".join(map(plan, labels)), escape(f"{condition}, {selection}"), reason]))
    return table(
        ["plans", "condition, selection", "reason"], lines, label="refused plans", words=(1, 2), classes="long"
    )
