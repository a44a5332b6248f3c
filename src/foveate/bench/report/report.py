"""``foveate report``: result files, checked, put together and written as one page with its charts beside it.

A file whose numbers contradict each other is refused: a page makes numbers look trustworthy, so it must not show others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError, UnsupportedError

STOCK = "uncompressed"
SCHEMAS = {"grid": 1, "time": 1}  # of the files that count them
NUMBERS = ("n", "right", "accuracy", "low", "high")
PAIRED = ("difference", "low", "high", "gained", "lost", "p", "same")
NEEDS = {
    "grid": ("command", "identity", "protocol", "environment", "model", "task", "slices", "samples", "rows"),
    "time": ("command", "environment", "model", "rounds", "rows"),
    "inside": ("command", "environment", "task", "slices", "rows"),
    "table": ("environment", "task", "slices", "rows"),
}
AGAIN = "measure again; result files are not for editing"
Loader = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Source:
    """One result: of a file, or of the files that hold its parts.

    Attributes:
        kind: one of :data:`NEEDS`.
        files: where it comes from.
        result: what it holds.
    """

    kind: str
    files: tuple[str, ...]
    result: dict[str, Any]


@dataclass
class Written:
    """What a report left behind.

    Attributes:
        page: the HTML file.
        plots: PNG files.
        notes: what was left out, and why.
    """

    page: Path
    plots: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> Source:
    """Read a file that holds one result; see :func:`read_all`."""
    found = read_all(path)
    if len(found) > 1:
        raise UnsupportedError(f"{path} holds the grids of {len(found)} models", hint="one with a single model")
    return found[0]


def read_all(path: Path) -> list[Source]:
    """Read one result file: a result, or the grids of several models.

    Raises:
        UnsupportedError: if it is missing, no result, of another schema, or if its numbers do not add up.
    """
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UnsupportedError(f"there is no file {path}", hint="foveate bench writes result files") from error
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"{path} is not JSON: {error}", hint="a file that foveate bench wrote") from error
    if isinstance(result, dict) and result.get("bench") == "grids" and result.get("parts"):
        return [_source(path, part) for part in result["parts"]]
    return [_source(path, result)]


def _source(path: Path, result: Any) -> Source:
    bench = result.get("bench", "table") if isinstance(result, dict) else None
    kind = bench if isinstance(bench, str) else ""
    if kind not in NEEDS or not isinstance(result.get("rows"), list) or not result["rows"]:
        raise UnsupportedError(f"{path} is not a result", hint="files of foveate bench: grid, time, inside or table")
    if (schema := result.get("schema")) != SCHEMAS.get(kind):
        raise UnsupportedError(
            f"{path} has schema {schema!r}, this version reads {SCHEMAS.get(kind)!r}",
            hint="the version of foveate that wrote it, or measure again",
        )
    try:
        check(kind, result)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error.what}", where=error.where, hint=error.hint or AGAIN) from error
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        what = f"{path} is not a whole result: {type(error).__name__}: {error}"
        raise UnsupportedError(what, hint=AGAIN) from error
    return Source(kind, (str(path),), result)


def check(kind: str, result: Mapping[str, Any]) -> None:
    """Look for what is missing, and for numbers that contradict each other.

    Raises:
        UnsupportedError: if there is any.
    """
    if missing := [name for name in NEEDS[kind] if name not in result]:
        raise UnsupportedError(f"has no {', '.join(missing)}", hint=AGAIN)
    _finite(result["rows"], "rows")
    if kind == "time":
        for row in result["rows"]:
            _wanted(
                row, ("label", "method") if "error" in row else ("label", "method", "batch", "visual_tokens", "time")
            )
        return
    seen = set()
    for row in result["rows"]:
        label = row.get("label") or row.get("plan") or row["method"]
        if kind == "grid":
            _wanted(row, ("label", "method", "keep", "stage", "seed", "condition", "selection"))
            if (key := (label, row["condition"], row["selection"])) in seen:
                raise UnsupportedError(f"holds the row {' '.join(key)} twice")
            seen.add(key)
        if "error" in row:
            continue
        _wanted(row, (*NUMBERS, "slices", *(("tokens_per_image", "tokens_over_layers") if kind == "grid" else ())))
        _adds_up(row, label)
        for name in ("n", "right"):
            if sum(part[name] for part in row["slices"].values()) != row[name]:
                raise UnsupportedError(f"{label}: {name} of its slices do not add up to {row[name]}")
    if kind == "grid":
        _whole(result)


def _whole(result: Mapping[str, Any]) -> None:
    """Every row has its uncompressed row, with the same samples."""
    fine = [row for row in result["rows"] if "error" not in row]
    stock = {(row["condition"], row["selection"]): row for row in fine if row["method"] == STOCK}
    if not stock:
        raise UnsupportedError("has no row of the uncompressed model, with which all others are compared")
    for row in fine:
        mine = stock.get((row["condition"], row["selection"]))
        if mine is None:
            raise UnsupportedError(f"{row['label']}: no uncompressed row under {row['condition']}, {row['selection']}")
        if mine["n"] != row["n"]:
            raise UnsupportedError(f"{row['label']} answered {row['n']} samples, the uncompressed model {mine['n']}")
        if row is mine:
            continue
        _wanted(row, ("against_uncompressed",))
        if (row["right"] - mine["right"]) != round(row["against_uncompressed"]["difference"] * row["n"]):
            raise UnsupportedError(f"{row['label']}: its difference is not that of the right answers")
        if "simple" in row and "difficult" in row and row["simple"]["n"] + row["difficult"]["n"] != mine["right"]:
            raise UnsupportedError(f"{row['label']}: simple and difficult are not the {mine['right']} that were right")
    if len(result["samples"]) < max(row["n"] for row in fine):
        raise UnsupportedError(f"lists {len(result['samples'])} samples, fewer than were answered")


def _wanted(row: Mapping[str, Any], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in row]:
        raise UnsupportedError(f"a row, {row.get('label', row.get('method', '?'))}, has no {', '.join(missing)}")


def _adds_up(part: Any, where: str) -> None:
    """Counts, shares and intervals agree with each other, here and in everything inside."""
    if not isinstance(part, Mapping):
        return
    if "right" in part and "n" in part:
        n, right, share = part["n"], part["right"], part["accuracy"]
        if not 0 <= right <= n:
            raise UnsupportedError(f"{where}: {right} right of {n}")
        if abs(share - right / max(n, 1)) > 1e-6:
            raise UnsupportedError(f"{where}: accuracy {share} is not {right} of {n}")
        if not part["low"] - 1e-9 <= share <= part["high"] + 1e-9:
            raise UnsupportedError(f"{where}: accuracy {share} lies outside its interval")
    if "gained" in part:
        _wanted({"label": where, **part}, PAIRED)
        if not part["low"] <= part["high"] or not 0 <= part["p"] <= 1:
            raise UnsupportedError(f"{where}: a paired difference from {part['low']} to {part['high']}, p {part['p']}")
    for name, inner in part.items():
        if name not in ("plan", "time"):
            _adds_up(inner, f"{where}, {name}" if name in ("slices", "simple", "difficult", "agreement") else where)


def _finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UnsupportedError(f"holds {value} in {where}")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _finite(inner, str(value.get("label", where)) if name != "label" else where)
    elif isinstance(value, list):
        for inner in value:
            _finite(inner, where)


def gather(paths: Sequence[Path]) -> list[Source]:
    """Read files, and put those together that are parts of one grid.

    Raises:
        UnsupportedError: as :func:`read`; if there is no file; if a file, or a part, comes twice; if a part is missing.
    """
    if not paths:
        raise UnsupportedError("there is nothing to report", hint="foveate report results.json")
    groups: dict[Any, list[Source]] = {}
    for source in (source for path in paths for source in read_all(path)):
        groups.setdefault(source.result["identity"] if source.kind == "grid" else source.files, []).append(source)
    found = []
    for group in groups.values():
        files = tuple(name for source in group for name in source.files)
        if len(group) > 1 and group[0].kind != "grid":
            raise UnsupportedError(f"{files[0]} is named twice")
        cut = [source.result["protocol"].get("shard") for source in group if source.kind == "grid"]
        if len(group) == 1 and (not cut or cut[0] in (None, [1, 1])):
            found.append(group[0])
            continue
        from ..grid.results import merge

        if len({json.dumps(one) for one in cut}) < len(cut):
            raise UnsupportedError(f"{' and '.join(files)} hold the same part of one run", hint="name each once")
        try:
            found.append(Source("grid", files, merge([source.result for source in group])))
        except UnsupportedError as error:
            raise UnsupportedError(f"{', '.join(files)}: {error.what}", where=error.where, hint=error.hint) from error
    return found


def write(
    paths: Sequence[Path],
    out: Path,
    *,
    keep: str = "",
    pictures: int = 0,
    load: Loader | None = None,
    plots: bool = True,
) -> Written:
    """Write ``index.html``, and charts as PNG files, into a folder.

    Args:
        paths: result files.
        out: folder, made if need be.
        keep: budget that tables show first; the middle one if empty or not measured.
        pictures: samples of which the page shows what was kept; needs ``load``.
        load: gives the testbed and its processor; results of other models have no pictures.
        plots: whether to draw the PNG files, which takes matplotlib.

    Raises:
        UnsupportedError: as :func:`gather`.
    """
    sources = gather(paths)
    from .gallery import gallery
    from .plain import plain
    from .sections import grid
    from .sheet import page
    from .timesheet import bench

    out.mkdir(parents=True, exist_ok=True)
    written = Written(out / "index.html")
    runs = []
    for i, source in enumerate(sources, 1):
        anchor = f"{source.kind}-{i}" if len(sources) > 1 else source.kind
        if source.kind == "grid":
            kept = gallery(source.result, pictures, load, keep)
            runs.append(grid(source.result, source.files, anchor, keep, kept))
        else:
            runs.append((bench if source.kind == "time" else plain)(source.result, source.files, anchor))
        if plots:
            _plots(source, anchor, keep, out, written)
    written.page.write_text(page(_title(sources), _lead(sources), runs, _made()), encoding="utf-8")
    return written


def _title(sources: Sequence[Source]) -> str:
    from .sections import named

    grids = [source.result for source in sources if source.kind != "time"]
    timed = len(grids) < len(sources) or any("time" in row for result in grids for row in result["rows"])
    what = " and ".join(["accuracy"] * bool(grids) + ["time"] * timed)
    models = dict.fromkeys(named(s.result["model"]["name"]) for s in sources if "model" in s.result)
    return f"Fewer visual tokens: {what}" + (f" of {', '.join(models)}" if models else "")


def _lead(sources: Sequence[Source]) -> str:
    if len(sources) == 1:
        return ""
    count = len({name for source in sources for name in source.files})
    return f'<p class="lead">{len(sources)} results from {count} files, each in a section of its own.</p>'


def _made() -> str:
    from ... import __version__

    return f"<p>Made by <code>foveate report</code>, foveate {escape(__version__)}. This file needs no network and no script.</p>"


def _plots(source: Source, anchor: str, keep: str, out: Path, written: Written) -> None:
    """The PNG files of a source; without matplotlib, a note in their place."""
    from .digest import PLACES, Digest
    from .plots import heat, png
    from .sections import TIMED, named
    from .timesheet import chart

    result = source.result
    try:
        if source.kind == "grid":
            digest = Digest(result, keep)
            names = dict.fromkeys((named(result["model"]["name"]), named(result["task"])))
            note = f"{' on '.join(names)}, n = {digest.stock['n']}, 95 % intervals"
            charts = [found[0] for where in PLACES if (found := digest.tokens(where)) is not None]
            charts += [timed for where in TIMED if (timed := digest.times(where)) is not None]
            for one in charts:
                png(one, _named(out, anchor, one.name, written), note)
            where = next((where for where in PLACES if digest.at(digest.keep, where)), "")
            if rows := digest.first(digest.at(digest.keep, where)):
                heat(digest, rows, _named(out, anchor, "slices", written), note)
        elif source.kind == "time":
            first = chart([row for row in result["rows"] if "error" not in row])
            if first is not None:
                note = f"{result['model']['name']}, {result['rounds']} rounds, medians and quartiles"
                png(first, _named(out, anchor, first.name, written), note)
    except MissingExtraError as error:
        written.plots.clear()
        written.notes.append(f"no PNG files: {error.what}; {error.hint}")


def _named(out: Path, anchor: str, name: str, written: Written) -> Path:
    path = out / f"{anchor}-{name}.png"
    written.plots.append(path)
    return path
