"""What a report says of times: one table for all files that hold any, and the section of a time bench."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .digest import BASELINES, STOCK
from .figures import Chart, Level, Point, Series, number
from .sheet import Part, Run, facts, machine, made, panel, plan, shape, table

PARTS = {
    "tower": "vision tower",
    "selection": "selection",
    "prefill": "prefill",
    "first_token": "first token",
    "decode": "decoding step",
    "total": "total",
    "oracle": "oracle",
}
RANDOM = " The weights are random: times are those of a trained model of this shape, answers mean nothing."
SHAKY = 0.1  # of a ratio: quartiles further apart are marked
LINES = 5  # in the chart of a time bench
WHAT = (
    "Ratios to the uncompressed model in the same rounds, medians; below each its quartiles and the seconds. Selection is over "
    "the uncompressed prefill. The oracle is the same model on a prompt that holds only the tokens that are left; efficiency is "
    "its time over the plan's, 1 is as fast as dropping tokens can be. A ~ marks ratios whose quartiles are more than a "
    "tenth of it apart: do not rely on these. Cache and memory are ratios in the same sense."
)


def kind(row: dict[str, Any]) -> str:
    """The class of a row in a table."""
    return "stock" if row["method"] == STOCK else "basic" if row["method"] in BASELINES else ""


def time_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every time of rows that have ``time``, with what they say of batch and throughput; columns that none has are left out."""
    some = [row for row in rows if row.get("time")]
    parts = [part for part in PARTS if any(part in row["time"] for row in some)]
    sizes = [
        name for name in ("batch", "visual_tokens", "text_tokens", "new_tokens") if any(name in row for row in some)
    ]
    has = {
        name: any(row["time"].get(name) is not None for row in some)
        for name in ("efficiency", "cache_bytes", "peak_memory")
    }
    speed = any("prompts_per_second" in row for row in some)
    head = ["plan", *(name.replace("_", " ") for name in sizes), *(PARTS[part] for part in parts)]
    head += ["efficiency"] * has["efficiency"] + ["cache"] * has["cache_bytes"] + ["peak memory"] * has["peak_memory"]
    head += ["prompts per second"] * speed
    lines = []
    for row in some:
        time = row["time"]
        cells = [plan(row["label"]), *(str(row.get(name, "")) for name in sizes)]
        cells += [_time(time.get(part)) for part in parts]
        if has["efficiency"]:
            cells.append(_ratio(time.get("efficiency"), time.get("efficiency_quartiles"), ""))
        for name, over in (("cache_bytes", "cache_over"), ("peak_memory", "peak_over")):
            if has[name]:
                count = time.get(name)
                cells.append(_ratio(time.get(over), None, "" if count is None else size(count)))
        if speed:
            cells.append(f"{row['prompts_per_second']:.3g}" if "prompts_per_second" in row else "")
        lines.append((kind(row), cells))
    return f'<p class="soft">{WHAT}</p>' + table(head, lines, label="times")


def _time(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    return _ratio(part.get("over"), part.get("quartiles"), seconds(part["seconds"]) if "seconds" in part else "")


def _ratio(over: float | None, quartiles: Sequence[float] | None, absolute: str) -> str:
    """HTML: the ratio, and below it its quartiles and what was measured."""
    rough = "~" if quartiles and over and quartiles[1] - quartiles[0] > SHAKY * over else ""
    below = [f"{quartiles[0]:.3f} to {quartiles[1]:.3f}"] if quartiles else []
    below += [absolute] if absolute else []
    text = "" if over is None else f"{rough}{over:.3f}"
    return text + "".join(f'<small class="under">{one}</small>' for one in below)


def seconds(value: float) -> str:
    """Seconds, or the unit in which they are readable."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\N{MICRO SIGN}s", 1e-6)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def size(count: float) -> str:
    """Bytes, or the unit in which they are readable."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def bench(result: dict[str, Any], files: Sequence[str], anchor: str) -> Run:
    """Everything about a time bench."""
    model = result["model"]
    fine = [row for row in result["rows"] if "error" not in row]
    refused = [row for row in result["rows"] if "error" in row]
    intro = (
        f'<p class="lead">{len({row["method"] for row in fine} - {STOCK})} methods on <b>{escape(model["name"])}</b> '
        f"({escape(shape(model))}), timed in turns over {result['rounds']} rounds.</p>"
        f"<p>{escape(machine(result['environment']))}."
        + (RANDOM if model.get("weights") == "random" else "")
        + _noise(result.get("control", {}))
        + "</p>"
        + facts(_facts(fine))
    )
    parts = []
    if (drawn := chart(fine)) is not None:
        note = (
            "<p>Time to the first token over the uncompressed model, by the visual tokens of a prompt; below 1 is faster. Bars "
            "are quartiles over rounds.</p>"
        )
        parts.append(
            Part(f"{anchor}-first", "Time to the first token", f'{note}<div class="charts">{panel(drawn)}</div>')
        )
    parts.append(Part(f"{anchor}-times", "All times", time_table(fine)))
    if result.get("break_even"):
        lines = []
        for row in result["break_even"]:
            tokens = "never" if row["visual_tokens"] is None else number(row["visual_tokens"])
            lines.append(("", [plan(row["label"]), tokens, f'<td class="words wide">{escape(row["why"])}</td>']))
        note = "<p>Visual tokens of a prompt from which a plan saves more time than choosing costs.</p>"
        head = ["plan", "pays from, visual tokens", "why"]
        html = note + table(head, lines, label="break-even", words=(2,))
        parts.append(Part(f"{anchor}-even", "Break-even", html))
    if refused:
        lines = [("", [plan(r["label"]), f'<td class="words wide">{escape(r["error"])}</td>']) for r in refused]
        parts.append(
            Part(
                f"{anchor}-refused",
                "Refused plans",
                table(["plan", "reason"], lines, label="refused plans", words=(1,)),
            )
        )
    parts.append(Part(f"{anchor}-made", "How this was made", made(result, files)))
    return Run(anchor, f"Time: {model['name']}", intro, parts)


def _noise(control: dict[str, list[float]]) -> str:
    """How far the uncompressed model was off when it was held against itself."""
    off = sorted(abs(ratio - 1) for ratio in control.get("first_token", ()))
    if not off:
        return ""
    return (
        " Held against itself in the same way, the uncompressed model's time to the first token was off by "
        f"{off[len(off) // 2]:.3f} in the median of {len(off)} groups of plans, by {off[-1]:.3f} in the worst."
    )


def _facts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The uncompressed time, the largest saving, the highest efficiency."""
    timed = [row for row in rows if row["method"] != STOCK and "over" in row["time"].get("first_token", {})]
    if not timed:
        return []
    longest = max(row["visual_tokens"] for row in timed)
    found = []
    for row in rows:
        time = row["time"].get("first_token", {})
        if row["method"] == STOCK and row["visual_tokens"] == longest and "seconds" in time:
            what, per = (
                f"to the first token, uncompressed: {_where(row)}",
                f"{seconds(time['seconds'] / row['batch'])} per prompt",
            )
            found = [(seconds(time["seconds"]), what, per if row["batch"] > 1 else "")]
            break
    best = min(timed, key=lambda row: row["time"]["first_token"]["over"])
    time = best["time"]["first_token"]
    sure = f"quartiles {' to '.join(f'{q:.3f}' for q in time['quartiles'])}" if "quartiles" in time else ""
    what = f"the shortest time to the first token, over uncompressed: {best['label']}, {_where(best)}"
    found.append((f"{time['over']:.2f} \N{MULTIPLICATION SIGN}", what, sure))
    if some := [row for row in rows if row["time"].get("efficiency") is not None]:
        best = max(some, key=lambda row: row["time"]["efficiency"])
        ends = best["time"].get("efficiency_quartiles", ())
        what = f"the highest efficiency, where 1 is as fast as dropping tokens can be: {best['label']}, {_where(best)}"
        sure = f"quartiles {' to '.join(f'{q:.3f}' for q in ends)}" if ends else ""
        found.append((f"{best['time']['efficiency']:.2f}", what, sure))
    return found


def _where(row: dict[str, Any]) -> str:
    return f"{row['visual_tokens']} visual tokens, batch of {row['batch']}"


def chart(rows: Sequence[dict[str, Any]]) -> Chart | None:
    """First token by visual tokens; a line per plan, at the smallest batch."""
    timed = [row for row in rows if row["method"] != STOCK and "over" in row["time"].get("first_token", {})]
    if not timed:
        return None
    batch = min(row["batch"] for row in timed)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(timed, key=lambda row: row["visual_tokens"]):
        if row["batch"] == batch:
            groups.setdefault(row["label"], []).append(row)
    order = sorted(groups, key=lambda label: groups[label][-1]["time"]["first_token"]["over"])
    own = [label for label in order if groups[label][0]["method"] not in BASELINES][:LINES]
    basic = [label for label in order if groups[label][0]["method"] in BASELINES][:4]
    series = []
    for labels, baseline in ((basic, True), (own, False)):
        for i, label in enumerate(labels):
            points = []
            for row in groups[label]:
                time = row["time"]["first_token"]
                low, high = time.get("quartiles", (None, None))
                note = f"{label}, {row['visual_tokens']} visual tokens: {time['over']:.3f}"
                points.append(Point(row["visual_tokens"], time["over"], low, high, note=note))
            series.append(Series(label, points, tuple((p.x, p.y) for p in points), i, baseline))
    left = len(groups) - len(series)
    more = f"; {left} slower plans only in the table" if left else ""
    return Chart(
        "first",
        f"Batch of {batch}{more}",
        "Time to the first token over uncompressed: "
        + "; ".join(f"{s.name} " + ", ".join(f"{y:.2f} at {x:.0f}" for x, y in s.line) for s in series),
        "visual tokens of a prompt (log scale)",
        "time to the first token, over uncompressed",
        series,
        Level(1.0, "uncompressed"),
        percent=False,
        marks=tuple(sorted({float(row["visual_tokens"]) for row in timed})),
    )
