"""Charts of a report: described once, drawn as inline SVG for the page and by matplotlib as PNG files.

Colours are those of Okabe and Ito; lines also differ in marker, baselines in dashes, and differences that are larger than
chance carry a sign, so that nothing hangs on colour. The SVG takes its colours from the page, and so follows its dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Of Okabe and Ito: on white, and where it differs on a dark page (black is the text's own colour).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("circle", "square", "up", "diamond", "down", "cross")
DASHES = ("6 3", "2 3", "8 3 2 3", "4 2 1 2 1 2")
WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 48  # room for the axes
SMALL = (150, 84)


@dataclass(frozen=True)
class Point:
    """A measured value: ``low`` to ``high`` is its interval, ``left`` to ``right`` that of its place on the x axis."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: for the legend.
        points: all that were measured.
        line: (x, y) of what joins them, none if they are not joined.
        style: place in the colours and markers; of a baseline in the dashes; negative for a point among many.
        baseline: drawn apart: grey, dashed, hollow.
        note: what the legend adds.
    """

    name: str
    points: Sequence[Point]
    line: Sequence[tuple[float, float]] = ()
    style: int = 0
    baseline: bool = False
    note: str = ""


@dataclass(frozen=True)
class Level:
    """A horizontal line, with the interval around it."""

    y: float
    name: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Chart:
    """What a chart shows; how it looks is up to who draws it.

    Attributes:
        name: short, for files and anchors.
        title: one line.
        about: what is seen, in words, for those who cannot see it.
        x, y: what the axes count.
        series: later ones are drawn above earlier ones.
        level: the uncompressed model.
        percent: whether y is a share, shown in percent; otherwise a ratio, and the axis begins at 0.
        log: whether x is on a logarithmic axis of base 2.
        upright: where a vertical line stands, none if None.
        marks: places on the x axis that should have a number.
    """

    name: str
    title: str
    about: str
    x: str
    y: str
    series: Sequence[Series]
    level: Level | None = None
    percent: bool = True
    log: bool = True
    upright: float | None = None
    marks: Sequence[float] = field(default_factory=tuple)

    def y_range(self) -> tuple[float, float]:
        """What the y axis spans; nothing that was measured lies outside."""
        values = [v for s in self.series for p in s.points for v in (p.y, p.low, p.high) if v is not None]
        if self.level is not None:
            values += [v for v in (self.level.y, self.level.low, self.level.high) if v is not None]
        if not self.percent:
            return 0.0, 1.08 * max(values)
        low, high = math.floor(min(values) * 10 + 1e-9) / 10, math.ceil(max(values) * 20 - 1e-9) / 20
        return low, max(high, low + 0.1)

    def x_range(self) -> tuple[float, float]:
        """What the x axis spans."""
        values = [v for s in self.series for p in s.points for v in (p.x, p.left, p.right) if v is not None]
        if not self.log:
            values += [] if self.upright is None else [self.upright]
            low, high = min(values), max(values)
            return (0.0 if low < 0.25 * high else math.floor(low * 20) / 20), high + 0.04 * (high - low)
        values += [m for m in self.marks if m > 0]
        return min(values) / 1.12, max(values) * 1.12

    def x_ticks(self) -> list[float]:
        """Numbers at the x axis: the marks as far as they fit, or round numbers."""
        if not self.log:
            return steps(*self.x_range())
        low, high = self.x_range()
        wanted = sorted(m for m in self.marks if m > 0) or [2.0**i for i in range(-4, 20) if low <= 2.0**i <= high]
        room = (math.log2(high) - math.log2(low)) / 12  # of a number
        found: list[float] = []
        for mark in wanted:
            if not found or math.log2(mark) - math.log2(found[-1]) >= room:
                found.append(mark)
        return found


def steps(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, roughly as many as asked for."""
    rough = (high - low) / about
    scale = 10 ** math.floor(math.log10(rough))
    step = min((m * scale for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """As short as it is exact to three digits: 64, 0.25, 1.5."""
    return f"{value:.0f}" if abs(value - round(value)) < 1e-9 or abs(value) >= 100 else f"{value:.3g}"


# -- inline SVG --------------------------------------------------------------------------------------------------------


def marker(shape: str, x: float, y: float, size: float = 4.0) -> str:
    """A marker of one of :data:`MARKERS` around (x, y)."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    corners = {
        "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        "up": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "down": ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "cross": ((-1, -1), (0, -0.3), (1, -1), (0.3, 0), (1, 1), (0, 0.3), (-1, 1), (-0.3, 0)),
    }[shape]
    path = "L".join(f"{x + size * a:.1f} {y + size * b:.1f}" for a, b in corners)
    return f'<path d="M{path}Z"/>'


def look(series: Series) -> tuple[str, str, str]:
    """Classes, marker and dashes of a series."""
    if series.style < 0:
        return "many", "circle", ""
    place = series.style
    if series.baseline:
        return "base", MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]
    return f"k{place % len(COLOURS)}", MARKERS[place % len(MARKERS)], ""


def key(series: Series) -> str:
    """A series' line and marker, for a legend."""
    classes, shape, dashes = look(series)
    line = f'<line x1="1" x2="31" y1="8" y2="8"{_dashed(dashes)}/>' if series.line else ""
    return f'<svg class="key {classes}" width="32" height="16" aria-hidden="true">{line}{marker(shape, 16, 8)}</svg>'


def _dashed(dashes: str) -> str:
    return f' stroke-dasharray="{dashes}"' if dashes else ""


class _Plane:
    """From values to places in the picture."""

    def __init__(self, chart: Chart, box: tuple[float, float, float, float]) -> None:
        self.left, self.top, self.right, self.bottom = box
        self.log, (self.x0, self.x1), (self.y0, self.y1) = chart.log, chart.x_range(), chart.y_range()

    def x(self, value: float) -> float:
        low, high = (math.log2(v) if self.log else v for v in (self.x0, self.x1))
        share = ((math.log2(value) if self.log else value) - low) / (high - low)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / (self.y1 - self.y0) * (self.bottom - self.top)


def svg(chart: Chart) -> str:
    """The chart as an SVG element whose colours come from the page."""
    plane = _Plane(chart, (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    parts = [_axes(chart, plane)]
    if chart.upright is not None:
        x = plane.x(chart.upright)
        parts.append(f'<g class="level"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></g>')
    if chart.level is not None:
        parts.append(_level(chart.level, plane))
    joined = [s for s in chart.series if s.line]
    for series in chart.series:
        classes, shape, dashes = look(series)
        # Intervals at the same place on the x axis would hide each other: each series is moved by a pixel or three.
        move = 3.0 * (joined.index(series) - (len(joined) - 1) / 2) if series in joined else 0.0
        drawn = []
        if series.line:
            path = "L".join(f"{plane.x(x) + move:.1f} {plane.y(y):.1f}" for x, y in series.line)
            drawn.append(f'<path class="line" d="M{path}"{_dashed(dashes)}/>')
        for point in series.points:
            x, y = plane.x(point.x) + move, plane.y(point.y)
            drawn.append(_intervals(point, plane, x, y) if series.style >= 0 else "")
            drawn.append(f"<g>{marker(shape, x, y, 4.0 if series.style >= 0 else 2.6)}{_tip(point.note)}</g>")
        parts.append(f'<g class="{classes}">{"".join(drawn)}</g>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.about)}">'
        f"{''.join(parts)}</svg>"
    )


def _tip(note: str) -> str:
    return f"<title>{escape(note)}</title>" if note else ""


def _intervals(point: Point, plane: _Plane, x: float, y: float) -> str:
    found = ""
    if point.low is not None and point.high is not None:
        found += f"M{x:.1f} {plane.y(point.low):.1f}V{plane.y(point.high):.1f}"
    if point.left is not None and point.right is not None:
        found += f"M{plane.x(point.left):.1f} {y:.1f}H{plane.x(point.right):.1f}"
    return f'<path class="span" d="{found}"/>' if found else ""


def _axes(chart: Chart, plane: _Plane) -> str:
    parts = []
    for value in steps(*chart.y_range()):
        y = plane.y(value)
        text = f"{100 * value:.0f}" if chart.percent else number(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for value in chart.x_ticks():
        x = plane.x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x)}</text>')
    parts.append(f'<text x="4" y="12">{escape(chart.y)}</text>')
    return "".join(parts)


def _level(level: Level, plane: _Plane) -> str:
    y, found = plane.y(level.y), ""
    if level.low is not None and level.high is not None:
        top, height = plane.y(level.high), plane.y(level.low) - plane.y(level.high)
        found = f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - RIGHT - LEFT}" height="{height:.1f}"/>'
    text = y - 6 if y - TOP > 16 else y + 16
    return (
        f'<g class="level">{found}<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT + 4}" y="{text:.1f}">{escape(level.name)}</text></g>'
    )


def small(chart: Chart, series: Series, beside: Series | None = None) -> str:
    """One series of a chart by itself, on the same axes, in a small SVG without numbers; ``beside`` is drawn faintly."""
    width, height = SMALL
    plane = _Plane(chart, (3, 3, width - 3, height - 3))
    parts = [f'<rect class="frame" x=".5" y=".5" width="{width - 1}" height="{height - 1}"/>']
    if chart.level is not None:
        y = plane.y(chart.level.y)
        parts.append(f'<line class="rule strong" x1="3" x2="{width - 3}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for one in (beside, series):
        if one is not None and one.line:
            path = "L".join(f"{plane.x(x):.1f} {plane.y(y):.1f}" for x, y in one.line)
            dots = "" if one is beside else "".join(marker("circle", plane.x(x), plane.y(y), 2) for x, y in one.line)
            classes, dashes = ("base", ' stroke-dasharray="3 2"') if one is beside else ("k0", "")
            parts.append(f'<g class="{classes}"><path class="line" d="M{path}"{dashes}/>{dots}</g>')
    values = "; ".join(f"{number(x)}: {100 * y:.1f} %" for x, y in series.line)
    label = escape(f"{series.name}: {values}")
    return f'<svg class="small" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
