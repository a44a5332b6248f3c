"""The demo as one HTML file: no script, no request to anywhere, readable on a phone and with any colour vision."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from .demo import Figure

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3; --fill: #0072b2; --back: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebee; --soft: #a0abb6; --line: #39424c; --fill: #56b4e9; --back: #14181d; --card: #1c2229; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--back); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
@media (max-width: 40rem) {
  .bar { display: none; } th, td { padding: .2rem .3rem; font-size: .85rem; } td span.soft { display: block; font-size: .75rem; }
}
td.wide { text-align: left; white-space: normal; font-size: .85rem; }
tr.stock td { font-weight: 600; }
svg { vertical-align: middle; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: 1rem 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: .7rem; margin-top: .6rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption { font-size: .85rem; line-height: 1.35; margin-top: .25rem; overflow-wrap: anywhere; }
.right::before { content: "\\2713  "; } .wrong::before { content: "\\2717  "; } .wrong { font-style: italic; }
"""


def page(result: dict[str, Any], figures: Sequence[Figure]) -> str:
    """The whole page.

    Args:
        result, figures: what :func:`foveate.bench.demo.demo` returned.
    """
    where = result["environment"]
    made = (
        f"foveate {where['foveate']}, torch {where['torch']}, transformers {where['transformers']}, "
        f"{where['device']} {where['dtype']}, {where['threads']} threads"
    )
    rows = "\n".join(_row(row) for row in result["rows"])
    shown = "\n".join(_section(figure) for figure in figures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Foveate demo</title><style>{STYLE}</style></head><body>
<h1>Foveate: a vision-language model with a fraction of its visual tokens</h1>
<p>{result["samples"]} questions in {len(result["slices"])} slices, answered by the uncompressed model and under every
method. {escape(result["note"])}</p>
<div class="scroll"><table>
<tr><th>method</th><th>kept</th><th>tokens per image</th><th>accuracy</th><th class="bar"></th><th>prefill</th>
<th>choosing</th><th>first token</th></tr>
{rows}
</table></div>
<p class="soft">Accuracy with its 95 % interval. Times are ratios to the uncompressed model, measured in turns in this run:
prefill is the language model on the prompt with choosing included, choosing is its part spent on choosing and rearranging
tokens, first token adds the vision tower. The line marks the uncompressed accuracy.</p>
<h2>What was kept</h2>
<p>Kept tokens are lit, dropped ones dimmed; places whose tokens were merged into a kept one are tinted. Of each slice the
page shows a question that the uncompressed model gets right and about half of the methods get wrong, if there is one.</p>
{shown}
<p class="soft">Made with {escape(made)}. On a model of your own:
<code>foveate run MODEL --image photo.jpg --ask "..." --method divprune --keep 0.25 --save-view kept.png</code></p>
</body></html>
"""


def _row(row: dict[str, Any]) -> str:
    stock = ' class="stock"' if row["method"] == "uncompressed" else ""
    name = f"<td>{escape(row['method'])}</td><td>{escape(row['share'])}</td>"
    if "error" in row:
        return (
            f'<tr{stock}>{name}<td colspan="6" class="wide">refused: {escape(row["error"].splitlines()[0])}</td></tr>'
        )
    time = row.get("time")
    interval = f'<span class="soft">{100 * row["low"]:.0f} to {100 * row["high"]:.0f}</span>'
    cells = f"<td>{row['tokens_per_image']:.0f}</td><td>{100 * row['accuracy']:.1f} % {interval}</td>"
    cells += f'<td class="bar">{_bar(row)}</td>'
    for which in ("prefill", "choosing", "first_token"):
        cells += f"<td>{time[which]:.3f}</td>" if time else "<td></td>"
    return f"<tr{stock}>{name}{cells}</tr>"


def _bar(row: dict[str, Any], width: int = 150) -> str:
    """Accuracy from 0 to 1 as a bar, its interval as a line, the uncompressed accuracy as a mark."""
    x, low, high = (width * row[name] for name in ("accuracy", "low", "high"))
    reference = row["accuracy"] - row.get("against_uncompressed", {}).get("difference", 0.0)
    mark = width * reference
    return (
        f'<svg width="{width}" height="14" role="img" aria-label="{row["accuracy"]:.3f}">'
        f'<rect y="3" width="{x:.1f}" height="8" fill="var(--fill)" opacity=".55"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7" stroke="var(--ink)" stroke-width="1.5"/>'
        f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="0" y2="14" stroke="var(--ink)" stroke-width="1" stroke-dasharray="2 2"/>'
        "</svg>"
    )


def _section(figure: Figure) -> str:
    panels = [_panel(figure.image, "uncompressed", figure.tokens, figure.uncompressed, figure.right)]
    panels += [_panel(p.image, p.method, p.tokens, p.answer, p.right) for p in figure.panels]
    return (
        f"<section><b>{escape(figure.question)}?</b> <span class=soft>right answer: {escape(figure.answer)}; "
        f'slice {escape(figure.slice)}</span><div class="grid">{"".join(panels)}</div></section>'
    )


def _panel(image: Image.Image, name: str, tokens: int, answer: str, right: bool) -> str:
    verdict = "right" if right else "wrong"
    return (
        f'<figure><img src="{inline(image)}" alt="{escape(name)}, {tokens} tokens" width="{image.width}" '
        f'height="{image.height}"><figcaption>{escape(name)} <span class=soft>{tokens} tokens</span><br>'
        f'<span class="{verdict}">{escape(answer) or "(nothing)"}</span></figcaption></figure>'
    )


def inline(image: Image.Image) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
