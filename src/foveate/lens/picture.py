"""Draws what a run kept: kept tokens as they are, dropped ones dimmed and grey, merged ones tinted.

Kept cells are left untouched, so that a reader sees exactly what the model still sees; brightness alone tells kept from
dropped, which also holds for colour-blind readers and in print. A picture that is encoded twice (an overview and tiles
over it) becomes two panels: one picture could not show that the overview kept a place which the tiles dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from ..plan import Plan
    from ..report import ImageReport

DROPPED, FED, KEPT = 0, 1, 2
DIM = 0.32  # brightness left to dropped cells
TINT = (86, 180, 233)  # sky blue of the Okabe-Ito palette: told apart from grey with any colour vision
MARGIN, LINE = 8, 18


def picture(
    image: Image.Image,
    report: ImageReport,
    *,
    plan: Plan | None = None,
    size: int | None = None,
    states: np.ndarray | None = None,
) -> Image.Image:
    """The picture with its kept tokens lit and the dropped ones dimmed.

    Tokens that were merged into a kept one are tinted, if the report carries the reduction. Places that no tile covers
    count as dropped.

    Args:
        image: what the model was shown (for models that crop: the crop, see :func:`seen`).
        report: one of ``run.report.images``.
        plan: what ran. If it made the picture smaller before the tower saw it, that smaller picture is drawn (coarse,
            all lit), since no place of it was dropped.
        size: enlarge so that the longer side has at least this many pixels.
        states: (n,) what to draw of each token, DROPPED, FED or KEPT, in place of what became of it.

    Returns:
        An RGB picture; two or more panels side by side if tiles overlap (an overview comes first).
    """
    image = image.convert("RGB")
    if size is not None and max(image.size) < size:
        factor = size / max(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    if plan is not None and plan.steps[0].stage == "input" and len(plan.steps) == 1:
        return _coarse(image, report)
    states = _states(report) if states is None else states
    place = {name: getattr(report, name).cpu().numpy() for name in ("tile", "row", "col", "kind")}
    panels = [_shade(image, _levels(image.size, report, states, place, tiles)) for tiles in _panels(report.boxes)]
    if len(panels) == 1:
        return panels[0]
    captions = [f"{len(tiles)} tiles" if len(tiles) > 1 else "overview" for tiles in _panels(report.boxes)]
    return strip(panels, captions)


def _states(report: ImageReport) -> np.ndarray:
    """(n,) what became of each token."""
    states = np.full(len(report.kind), DROPPED)
    reduction = getattr(report, "reduction", None)
    if reduction is not None and reduction.weight is not None:  # without weights, slots are copies: nothing was merged
        states[reduction.src.cpu().numpy()] = FED
    states[report.survivors.cpu().numpy()] = KEPT
    return states


def _coarse(image: Image.Image, report: ImageReport) -> Image.Image:
    kept = report.kept
    rows, cols = report.grids[0]
    high, wide = len(report.row[kept].unique()), len(report.col[kept].unique())
    small = max(1, round(image.width * wide / cols)), max(1, round(image.height * high / rows))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.NEAREST)


def _panels(boxes: Sequence[tuple[float, float, float, float]]) -> list[list[int]]:
    """Tiles in as few groups as first fit gives, none of which overlap inside a group; larger tiles first."""
    panels: list[list[int]] = []
    area = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    for tile in sorted(range(len(boxes)), key=lambda i: (-round(area[i], 6), i)):
        for panel in panels:
            if not any(_overlap(boxes[tile], boxes[other]) for other in panel):
                panel.append(tile)
                break
        else:
            panels.append([tile])
    return panels


def _overlap(a: tuple[float, ...], b: tuple[float, ...], slack: float = 1e-3) -> bool:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide > slack and high > slack


def _levels(
    size: tuple[int, int], report: ImageReport, states: np.ndarray, place: dict[str, np.ndarray], tiles: list[int]
) -> np.ndarray:
    """(height, width) state of the token that covers each pixel."""
    width, height = size
    levels = np.full((height, width), DROPPED)
    for tile in tiles:
        rows, cols = report.grids[tile]
        left, top, right, bottom = report.boxes[tile]
        grid = np.full((rows, cols), DROPPED)
        mine = (place["tile"] == tile) & (place["kind"] == 0)
        np.maximum.at(grid, (place["row"][mine], place["col"][mine]), states[mine])
        # A pixel belongs to the cell that holds its centre.
        r = np.floor(((np.arange(height) + 0.5) / height - top) / (bottom - top) * rows).astype(int)
        c = np.floor(((np.arange(width) + 0.5) / width - left) / (right - left) * cols).astype(int)
        ys, xs = np.flatnonzero((r >= 0) & (r < rows)), np.flatnonzero((c >= 0) & (c < cols))
        levels[np.ix_(ys, xs)] = grid[np.ix_(r[ys], c[xs])]
    return levels


def _shade(image: Image.Image, levels: np.ndarray) -> Image.Image:
    colours = np.asarray(image, dtype=np.float32)
    grey = colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    dropped = np.repeat(grey[..., None] * DIM, 3, axis=2)
    fed = 0.30 * grey[..., None] + 0.35 * np.array(TINT, dtype=np.float32)
    out = np.where((levels == KEPT)[..., None], colours, np.where((levels == FED)[..., None], fed, dropped))
    return Image.fromarray(np.clip(np.rint(out), 0, 255).astype(np.uint8))


def strip(images: Sequence[Image.Image], captions: Sequence[str] = (), columns: int | None = None) -> Image.Image:
    """Pictures side by side on white, each with a caption below.

    Args:
        images: one or more.
        captions: none, or one per picture; long ones are wrapped to the picture's width.
        columns: pictures per row; all in one row when None.
    """
    font = ImageFont.load_default(size=13)
    lines = [_wrap(text, image.width, font) for text, image in zip(captions, images, strict=bool(captions))]
    columns = columns or len(images)
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    tallest = [max(images[i].height for i in row) for row in rows]
    below = [max((LINE * len(lines[i]) + MARGIN // 2 for i in row), default=0) if lines else 0 for row in rows]
    width = max(sum(images[i].width + MARGIN for i in row) for row in rows) + MARGIN
    out = Image.new("RGB", (width, sum(tallest) + sum(below) + MARGIN * (len(rows) + 1)), "white")
    draw, y = ImageDraw.Draw(out), MARGIN
    for row, high, text in zip(rows, tallest, below, strict=True):
        x = MARGIN
        for i in row:
            out.paste(images[i].convert("RGB"), (x, y + (high - images[i].height) // 2))
            for j, line in enumerate(lines[i] if lines else ()):
                draw.text((x, y + high + MARGIN // 2 + j * LINE), line, fill=(20, 20, 20), font=font)
            x += images[i].width + MARGIN
        y += high + text + MARGIN
    return out


def _wrap(text: str, width: int, font: Any) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def seen(images: Sequence[Image.Image], inputs: Any, processor: Any) -> list[Image.Image]:
    """The pictures as the vision tower was shown them, where that can be told: cropped and scaled.

    Processors that cut a picture into tiles or patches return the pictures as they are; token boxes are shares of the
    whole picture there.

    Args:
        images: the user's pictures, in prompt order.
        inputs: what the processor made of them.
        processor: for the mean and deviation that pixels were normalised with.
    """
    pixels = inputs.get("pixel_values")
    maker = getattr(processor, "image_processor", processor)
    tiled = "image_sizes" in inputs or "image_grid_thw" in inputs
    if pixels is None or tiled or pixels.ndim != 4 or len(pixels) != len(images) or pixels.shape[1] != 3:
        return [image.convert("RGB") for image in images]
    values = pixels.float().cpu().permute(0, 2, 3, 1).numpy()  # (images, y, x, 3)
    if getattr(maker, "do_normalize", False):
        values = values * np.array(maker.image_std, np.float32) + np.array(maker.image_mean, np.float32)
    return [Image.fromarray(np.rint(np.clip(v, 0, 1) * 255).astype(np.uint8)) for v in values]
