"""The frame of a report: one HTML file without script, requests or fixed colours, for phones, large screens and paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..page import STYLE
from .figures import COLOURS, Chart, key, svg

_LIGHT = "".join(f"--k{i}: {colour}; " for i, colour in enumerate(COLOURS))
_DARK = "--k0: #56b4e9; --k5: #0072b2; "  # the darker blue is hard to see on black
# Differences: vermilion is worse, blue is better, stronger with size; the text on it stays the page's own.
_SHADES = "".join(
    f"td.w{i} {{ background: rgb(213 94 0 / {share}); }} td.b{i} {{ background: rgb(0 114 178 / {share}); }}\n"
    for i, share in enumerate((0.12, 0.24, 0.36, 0.48, 0.6), 1)
)
MORE = f"""
:root {{ {_LIGHT} --good: #0072b2; --bad: #b34700; color-scheme: light dark; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} --good: #56b4e9; --bad: #f08a4b; }} }}
html {{ scroll-padding-top: 1rem; }}
body {{ overflow-wrap: break-word; padding: 1.4rem 1.2rem 4rem; max-width: 75rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; letter-spacing: -.01em; margin: .2rem 0 .8rem; }}
h2.run {{ font-size: 1.4rem; line-height: 1.25; margin: 3.5rem 0 .6rem; padding-top: 1.2rem;
  border-top: 2px solid var(--ink); }}
.part {{ font-size: 1.2rem; margin: 3rem 0 .4rem; }} h4 {{ font-size: .95rem; margin: 1.4rem 0 .3rem; }}
p.lead {{ font-size: 1.08rem; max-width: 50rem; }} p.over {{ color: var(--soft); font-size: .9rem; margin: 0; }}
a {{ color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }}
nav ul {{ list-style: none; margin: .8rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  font-size: .92rem; }}
nav li.run {{ flex-basis: 100%; font-weight: 600; margin-top: .3rem; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12.5rem), 1fr)); gap: .7rem;
  margin: 1.2rem 0; }}
table.long tbody th {{ white-space: normal; min-width: 12rem; vertical-align: top; }}
tbody th, td {{ vertical-align: top; }}
.facts div {{ max-width: 26rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }}
.facts b {{ display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }}
.facts span {{ font-size: .88rem; line-height: 1.35; display: block; }}
.facts .soft {{ margin-top: .2rem; font-size: .82rem; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }}
figure.panel {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
  max-width: 44rem; }}
@media (min-width: 64rem) {{
  .charts > :last-child:nth-child(odd) {{ grid-column: 1 / -1; max-width: none; display: grid; column-gap: 2rem;
    grid-template-columns: minmax(0, 36rem) 1fr; grid-template-rows: auto 1fr; }}
  .charts > :last-child:nth-child(odd) figcaption {{ grid-column: 1 / -1; }}
  .charts > :last-child:nth-child(odd) .legend {{ flex-direction: column; margin-top: 1.4rem; font-size: .9rem; }}
}}
figure img {{ height: auto; }}
figure.panel > figcaption {{ font-size: .95rem; font-weight: 600; margin: 0 0 .4rem; }}
.legend {{ list-style: none; margin: .5rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem .9rem;
  font-size: .85rem; }}
svg.chart {{ width: 100%; height: auto; display: block; }} svg.key {{ margin-right: .3rem; }}
svg text {{ font: 13px system-ui, sans-serif; fill: var(--soft); }}
svg .rule {{ stroke: var(--line); }} svg .rule.strong {{ stroke: var(--soft); stroke-width: 1; }}
svg .axis {{ stroke: var(--soft); }}
svg .line {{ fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }}
svg.key line {{ stroke: currentColor; stroke-width: 2; }}
svg .span {{ fill: none; stroke: currentColor; stroke-width: 1.4; opacity: .55; }}
svg circle, svg path {{ fill: currentColor; }} svg .line, svg .span {{ fill: none; }}
svg .base, svg.base {{ color: var(--soft); }} svg .base .line, svg.base line {{ stroke-width: 1.5; }}
svg .base circle, svg .base g path, svg.base circle, svg.base path {{ fill: var(--card); stroke: currentColor;
  stroke-width: 1.5; }}
svg .many, svg.many {{ color: var(--soft); opacity: .5; }}
svg .level line {{ stroke: var(--ink); stroke-width: 1.5; }} svg .level .band {{ fill: var(--soft); opacity: .18; }}
svg .level text {{ fill: var(--ink); stroke: var(--card); stroke-width: 3px; paint-order: stroke; }}
svg .frame {{ fill: var(--card); stroke: var(--line); }}
{"".join(f"svg .k{i}, svg.k{i} {{ color: var(--k{i}); }} " for i in range(len(COLOURS)))}
.tiny {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(8.4rem, 1fr)); gap: .8rem .7rem;
  margin: .8rem 0; }}
.tiny svg {{ width: 100%; height: auto; display: block; }} .tiny figcaption {{ font-size: .8rem; }}
.scroll {{ max-width: 100%; overflow-x: auto; margin: .7rem 0; }}
.scroll:focus-visible {{ outline: 2px solid var(--fill); }}
table {{ width: auto; min-width: min(100%, 28rem); font-size: .88rem; }}
caption {{ text-align: left; color: var(--soft); padding: .2rem 0; }}
th, td {{ padding: .22rem .55rem; }} thead th {{ border-bottom: 1px solid var(--soft); }}
tbody th {{ font-weight: 400; color: var(--ink); font-size: inherit; text-align: left; white-space: nowrap; }}
thead th:first-child, tbody th {{ position: sticky; left: 0; background: var(--back); }}
td small, th small {{ font-weight: 400; color: var(--soft); font-size: .8rem; margin-left: .3rem; }}
td small:not(.under) {{ display: inline-block; min-width: 7em; text-align: left; }}
td small.under {{ display: block; margin: 0; }}
td.words, th.words {{ text-align: left; }} td.wide {{ min-width: 18rem; }}
tr.stock th, tr.stock td {{ font-weight: 600; }}
tr.basic th {{ font-style: italic; }}
tr.basic th::after {{ content: " (baseline)"; color: var(--soft); font-size: .8rem; }}
.heat td {{ text-align: center; min-width: 3.2rem; padding: .22rem .3rem; border: 1px solid var(--back); }}
.heat thead th {{ text-align: center; padding: .22rem .3rem; }} .heat thead th:first-child {{ text-align: left; }}
.heat th {{ border-bottom-color: var(--back); }} .heat i {{ font-style: normal; font-size: .7em; vertical-align: .1em; }}
.heat td.least {{ outline: 1.5px solid var(--soft); outline-offset: -1.5px; }}
.worse {{ color: var(--bad); font-weight: 600; }} .better {{ color: var(--good); font-weight: 600; }}
{_SHADES}
details {{ margin: .6rem 0; }} summary {{ cursor: pointer; font-size: .92rem; padding: .25rem 0; }}
summary:hover {{ text-decoration: underline; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; font-size: .88rem;
  margin: .6rem 0; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; overflow-wrap: anywhere; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem .8rem; font-size: .85rem; }}
footer {{ margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .6rem; }}
@media (max-width: 40rem) {{
  h1 {{ font-size: 1.4rem; }} table {{ font-size: .82rem; }} th, td {{ padding: .2rem .4rem; }}
  figure.panel {{ padding: .5rem; }}
  tbody th {{ white-space: normal; min-width: 6.5rem; max-width: 10rem; overflow-wrap: break-word; }}
  svg text {{ font-size: 15px; }}
  dl {{ grid-template-columns: minmax(0, 1fr); }} dd {{ margin: 0 0 .35rem; }}
}}
@page {{ size: A4 landscape; margin: 12mm; }}
@media print {{
  :root {{ --ink: #000; --soft: #444; --line: #bbb; --fill: #0072b2; --back: #fff; --card: #fff;
    {_LIGHT} --good: #0072b2; --bad: #b34700; }}
  :root {{ color-scheme: light; }} * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  html {{ font-size: 11px; }} body {{ max-width: none; padding: 0; font-size: 1rem; }} nav {{ display: none; }}
  .scroll {{ overflow: visible; }} table {{ font-size: 8.5px; width: 100%; }} th, td {{ padding: 1px 3px; }}
  .heat td, .heat thead th {{ min-width: 0; padding: 1px; }}
  td small, th small {{ font-size: 7px; }} th, td, tbody th {{ white-space: normal; position: static !important; }}
  td.wide {{ min-width: 0; }}
  thead {{ display: table-header-group; }} tr, figure, .facts div {{ break-inside: avoid; }}
  h2, h3, h4, summary {{ break-after: avoid; }}
  details::details-content {{ content-visibility: visible; display: block; block-size: auto; }}
  .charts {{ grid-template-columns: 1fr 1fr; }} figure.panel {{ max-width: 125mm; }}
  .tiny {{ grid-template-columns: repeat(8, 1fr); }}
}}
"""


@dataclass
class Part:
    """A piece of a page: what stands under one heading."""

    anchor: str
    title: str
    html: str


@dataclass
class Run:
    """What a page says of one result, in parts."""

    anchor: str
    title: str
    intro: str
    parts: list[Part] = field(default_factory=list)


def page(title: str, lead: str, runs: Sequence[Run], made: str) -> str:
    """The whole page.

    Args:
        title: its one heading of the first order, plain text.
        lead: HTML below it; a single result says what it is by itself.
        runs: one per result.
        made: HTML at its end.
    """
    single = len(runs) == 1
    entries, body = [], []
    for run in runs:
        level = 2 if single else 3
        if not single:
            entries.append(f'<li class="run"><a href="#{run.anchor}">{escape(run.title)}</a></li>')
            body.append(f'<h2 id="{run.anchor}" class="run">{escape(run.title)}</h2>\n{run.intro}\n')
        entries += [f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in run.parts]
        for part in run.parts:
            body.append(f'<h{level} id="{part.anchor}" class="part">{escape(part.title)}</h{level}>\n{part.html}\n')
    above = runs[0].intro if single else lead
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{MORE}</style></head><body>\n"
        f'<header><p class="over">Foveate report</p><h1>{escape(title)}</h1>{above}</header>\n'
        f'<nav aria-label="Contents"><ul>{"".join(entries)}</ul></nav>\n<main>{"".join(body)}</main>\n'
        f'<footer class="soft">{made}</footer>\n</body></html>\n'
    )


def table(
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    *,
    label: str,
    words: Sequence[int] = (),
    classes: str = "",
) -> str:
    """A table in a box of its own that scrolls.

    Args:
        head: HTML of the column heads.
        rows: (class, cells); cells are HTML, or a whole ``<td ...>``; the first cell heads the row.
        label: what the table holds, for those who cannot see it.
        words: columns that are text and stand at the left.
        classes: of the table.
    """
    left = dict.fromkeys(words, ' class="words"')
    heads = "".join(f'<th scope="col"{left.get(i, "")}>{cell}</th>' for i, cell in enumerate(head))
    lines = []
    for kind, cells in rows:
        rest = (c if c.startswith("<td") else f"<td{left.get(i, '')}>{c}</td>" for i, c in enumerate(cells[1:], 1))
        lines.append(f'<tr{f" class={kind}" if kind else ""}><th scope="row">{cells[0]}</th>{"".join(rest)}</tr>')
    kind = f' class="{classes}"' if classes else ""
    body = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table{kind}>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def panel(chart: Chart) -> str:
    """A chart with its title and its legend."""
    keys = [s for s in chart.series if not s.baseline][::-1] + [s for s in chart.series if s.baseline]
    entries = "".join(
        f"<li>{key(s)}{escape(s.name)}{f' <span class=soft>{escape(s.note)}</span>' if s.note else ''}</li>"
        for s in keys
    )
    return (
        f'<figure class="panel"><figcaption>{escape(chart.title)}</figcaption>{svg(chart)}'
        f'<ul class="legend">{entries}</ul></figure>'
    )


def plan(label: str) -> str:
    """A plan's text, which may break after its marks."""
    return escape(label).replace(":", ":<wbr>").replace(",", ",<wbr>").replace("_", "_<wbr>")


def folded(summary: str, html: str) -> str:
    """What only some readers want; open on paper."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def facts(entries: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers, each with a line that says what it is and one that says how sure it is."""
    cells = []
    for value, what, sure in entries:
        more = f'<span class="soft">{escape(sure)}</span>' if sure else ""
        cells.append(f"<div><b>{escape(value)}</b><span>{escape(what)}</span>{more}</div>")
    return f'<div class="facts">{"".join(cells)}</div>'


def pairs(data: Mapping[str, Any]) -> str:
    """Names and plain values, one below the other."""
    cells = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_value(value))}</dd>" for name, value in data.items())
    return f"<dl>{cells}</dl>"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else json.dumps(value)


def machine(environment: Mapping[str, Any]) -> str:
    """Where a result was made, in words."""
    hardware = environment.get("gpu") or environment.get("processor", "an unknown machine")
    threads = environment.get("threads")
    on = "" if environment.get("gpu") or threads is None else f", {threads} thread{'s' if threads != 1 else ''}"
    versions = f"torch {environment.get('torch', '?')}, transformers {environment.get('transformers', '?')}"
    return f"{hardware}, {environment.get('dtype', '?')} on {environment.get('device', '?')}{on}; {versions}"


def shape(model: Mapping[str, Any]) -> str:
    """A model's class and size, in words."""
    count, words = model.get("parameters"), [model.get("class", "of unknown class")]
    if count:
        words.append(
            f"{count / 1e9:.2f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"
        )
    words += [
        f"{model[name]} {what}" for name, what in (("layers", "decoder layers"), ("width", "wide")) if model.get(name)
    ]
    return ", ".join(words)


def made(result: Mapping[str, Any], files: Sequence[str]) -> str:
    """Command, files, identity, settings and environment of a result."""
    found = f"<pre><code>{escape(result.get('command', 'not recorded'))}</code></pre>"
    about: dict[str, Any] = {"files": ", ".join(files)}
    about |= {name: result[name] for name in ("identity", "task", "note", "model", "rounds") if name in result}
    found += pairs(about)
    for name, what in (("protocol", "What was set"), ("environment", "Where it ran")):
        if isinstance(result.get(name), Mapping):
            found += f"<h4>{what}</h4>{pairs(result[name])}"
    return found
