"""A report's charts as PNG files, by matplotlib: on white, for slides and papers, with the page's colours and markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import require
from .digest import Digest, beyond, budget, signed
from .figures import COLOURS, Chart, Series, look, number

SHAPES = {"circle": "o", "square": "s", "up": "^", "down": "v", "diamond": "D", "cross": "X"}
INK, SOFT, LINE = "#1b1f24", "#5b6570", "#d9dee3"
WORSE, BETTER = (0.835, 0.369, 0.0), (0.0, 0.447, 0.698)


def png(chart: Chart, path: Path, note: str) -> None:
    """Draw a chart.

    Args:
        chart: what to draw.
        path: of the PNG file.
        note: model, data and n, below the chart.

    Raises:
        MissingExtraError: without matplotlib.
    """
    require("matplotlib.pyplot", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if chart.level is not None:
        level = chart.level
        if level.low is not None and level.high is not None:
            axes.axhspan(level.low, level.high, color=SOFT, alpha=0.15, linewidth=0)
        axes.axhline(level.y, color=INK, linewidth=1.2)
        axes.annotate(level.name, (0.01, level.y), xycoords=("axes fraction", "data"), xytext=(0, 4),
                      textcoords="offset points", fontsize=9, color=INK)  # fmt: skip
    if chart.upright is not None:
        axes.axvline(chart.upright, color=INK, linewidth=1.2)
    for series in chart.series:
        _draw(axes, series)
    if chart.log:
        axes.set_xscale("log", base=2)
    axes.set_xlim(*chart.x_range())
    axes.set_ylim(*chart.y_range())
    ticks = chart.x_ticks()
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if chart.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.grid(axis="y", color=LINE)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    axes.set_title(chart.title, loc="left", fontsize=11, fontweight="bold")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, reverse=True)
    figure.supxlabel(note, fontsize=8, color=SOFT)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, series: Series) -> None:
    classes, shape, dashes = look(series)
    colour = SOFT if classes in ("base", "many") else COLOURS[int(classes[1:])]
    pattern: Any = (0, tuple(float(d) / 2 for d in dashes.split())) if dashes else "-"
    if series.line:
        axes.plot(*zip(*series.line, strict=True), color=colour, linestyle=pattern, linewidth=1.6)
    points = series.points
    few = classes != "many"
    kind = {"color": colour, "markerfacecolor": "white" if classes == "base" else colour, "marker": SHAPES[shape]}
    if few:
        for low, high, along in (("low", "high", "y"), ("left", "right", "x")):
            ends = [(getattr(p, low), getattr(p, high), p) for p in points if getattr(p, low) is not None]
            for first, last, point in ends:
                line = ([point.x, point.x], [first, last]) if along == "y" else ([first, last], [point.y, point.y])
                axes.plot(*line, color=colour, alpha=0.5, linewidth=1)
    axes.plot([p.x for p in points], [p.y for p in points], linestyle="none", alpha=1 if few else 0.4,
              markersize=6 if few else 3, label=series.name, **kind)  # fmt: skip


def heat(digest: Digest, rows: Sequence[dict[str, Any]], path: Path, note: str) -> None:
    """Draw paired differences, methods by slices; numbers and signs in the cells as on the page.

    Args:
        digest: of the grid.
        rows: of one budget.
        path: of the PNG file.
        note: model, data and n, below.

    Raises:
        MissingExtraError: without matplotlib.
    """
    require("matplotlib.pyplot", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(digest.stock["slices"])
    figure = Figure(figsize=(2.6 + 0.82 * (len(names) + 1), 1.6 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        parts = [row["against_uncompressed"], *(row["slices"].get(n, {}).get("against_uncompressed") for n in names)]
        for j, paired in enumerate(parts):
            if paired is None:
                continue
            difference, sign = paired["difference"], beyond(paired)
            shade = (*(WORSE if difference < 0 else BETTER), min(1.0, abs(difference) / 0.4) * 0.6)
            axes.fill(
                [j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5], color=shade, linewidth=0
            )
            mark = {-1: "\N{BLACK DOWN-POINTING TRIANGLE} ", 1: "\N{BLACK UP-POINTING TRIANGLE} "}.get(sign, "")
            axes.text(j, i, mark + signed(100 * difference), ha="center", va="center", fontsize=8,
                      fontweight="bold" if sign else "normal", color=INK)  # fmt: skip
    axes.set(xlim=(-0.5, len(names) + 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(names) + 1), ["all", *names], rotation=30, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [digest.name(row) for row in rows], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = f"Differences to the uncompressed model in points, {budget(digest.keep)}"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    signs = "triangles: the 95 % interval leaves zero out"
    figure.supxlabel(f"{note}; {signs}", fontsize=8, color=SOFT)
    figure.savefig(path, dpi=150)
