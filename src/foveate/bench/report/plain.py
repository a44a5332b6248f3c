"""Result files that a report shows as plain tables: ``foveate bench table``, and ``foveate bench inside``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .breakdown import difference, kind, share
from .sheet import Part, Run, folded, machine, made, plan, table
from .timesheet import SHAKY

WHERE = {"before": "before the model", "layers": "between layers", "cache": "cache"}


def plain(result: dict[str, Any], files: Sequence[str], anchor: str) -> Run:
    """A file of accuracies by row and slice, without charts.

    Args:
        result: what the file holds, checked.
        files: its name.
        anchor: of the heading.
    """
    inside = result.get("bench") == "inside"
    rows = [row for row in result["rows"] if "error" not in row]
    refused = [row for row in result["rows"] if "error" in row]
    n = rows[0]["n"] if rows else 0
    intro = (
        f"<p>{n} questions in {len(result['slices'])} slices. {escape(result.get('note', ''))}</p>"
        f'<p class="soft">{escape(machine(result["environment"]))}. Intervals of 95 %.</p>'
    )
    parts = [Part(f"{anchor}-rows", "Accuracy", _inside(rows) if inside else _accuracy(rows))]
    parts.append(Part(f"{anchor}-slices", "Slices", folded(f"{len(rows)} rows by slice, in %", _slices(rows))))
    if refused:
        lines = [("", [plan(_name(r)), f'<td class="words wide">{escape(r["error"])}</td>']) for r in refused]
        parts.append(
            Part(
                f"{anchor}-refused",
                "Refused plans",
                table(["plan", "reason"], lines, label="refused plans", words=(1,)),
            )
        )
    parts.append(Part(f"{anchor}-made", "How this was made", made(result, files)))
    title = "Accuracy at equal arithmetic and equal cache" if inside else "Accuracy table"
    return Run(anchor, f"{title}: {result['task']}", intro, parts)


def _name(row: dict[str, Any]) -> str:
    return row.get("label") or row.get("plan") or row["method"]


def _accuracy(rows: Sequence[dict[str, Any]]) -> str:
    head = ["plan", "tokens", "n", "accuracy, %", "difference, points", "p"]
    lines = []
    for row in rows:
        paired = row.get("against_uncompressed")
        tokens = f"{row['tokens_per_image']:.1f}" if "tokens_per_image" in row else ""
        cells = [plan(_name(row)), tokens, str(row["n"]), share(row)]
        lines.append(
            (kind(row), [*cells, difference(paired) if paired else "", f"{paired['p']:.3g}" if paired else ""])
        )
    return folded(f"{len(rows)} rows", table(head, lines, label="accuracy"))


def _inside(rows: Sequence[dict[str, Any]]) -> str:
    """Groups of equal arithmetic, then of equal cache, then what came as it is."""
    head = [
        "plan",
        "where",
        "target",
        "arithmetic",
        "prefill",
        "decoding step",
        "cache bytes",
        "n",
        "accuracy, %",
        "difference",
    ]
    lines = []
    for row in rows:
        paired = row.get("against_uncompressed")
        cells = [
            plan(_name(row)),
            WHERE.get(row["kind"], row["kind"]),
            "" if row["target"] is None else f"{row['target']:g}",
        ]
        cells += [_ratio(row, name) for name in ("layers_share", "prefill", "decode", "cache_share")]
        lines.append((kind(row), [*cells, str(row["n"]), share(row), difference(paired) if paired else ""]))
    return (
        '<p class="soft">Shares and times over the uncompressed model; a ~ marks times whose quartiles are more than a tenth '
        "apart. Rows with the same target were given the same arithmetic (the layers) or the same bytes (the cache).</p>"
        + folded(f"{len(rows)} rows", table(head, lines, label="accuracy at equal cost", words=(1,)))
    )


def _ratio(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    ends = row.get(f"{name}_quartiles")
    return f"{'~' if ends and ends[1] - ends[0] > SHAKY * row[name] else ''}{row[name]:.3f}"


def _slices(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0]["slices"]) if rows else []
    head = ["plan", *(f"{escape(name)}<br><small>n = {rows[0]['slices'][name]['n']}</small>" for name in names)]
    lines = [(kind(row), [plan(_name(row)), *(share(row["slices"][name]) for name in names)]) for row in rows]
    return table(head, lines, label="accuracy by slice")
