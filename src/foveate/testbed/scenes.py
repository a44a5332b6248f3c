"""Draws the testbed's pictures and says, for every 8 x 8 patch, which words are true of it.

Five kinds of picture: `shapes` (coloured shapes, sometimes one in front of another), `labels` (coloured labels with
a word, a printed number or real handwritten digits, among shapes), `tags` (the same with tiny one-letter tags),
`page` (lines of words and numbers in three columns) and `chart` (bars). Backgrounds are plain, noisy or real
photographs.

Odd on purpose: everything is drawn twice, once in colour and once into an *owner map* that notes which item each
pixel belongs to. Dense labels are read off that map, so rings have holes, occlusion is exact and a patch shared by
two things is left out. Printed letters are 8 px wide and lie on the patch raster, give or take a pixel: at free
positions the tower needs many times the pictures to read them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import require
from .words import (
    COLOURS,
    COLUMNS,
    DENSE,
    DENSE_INDEX,
    LETTER_ORDINALS,
    LETTERS,
    NUMBERS,
    PAGE_WORDS,
    ROWS,
    SHAPES,
    held_out,
)

SIZE, PATCH = 192, 8
GRID = SIZE // PATCH  # 24 x 24 = 576 visual tokens
BACKGROUND = 0.15  # weight of patches that show nothing with a name
CELL = SIZE // 3  # things are placed in a 3 x 3 raster of cells, so that a place has a name

KINDS = ("shapes", "labels", "tags", "page", "chart")
RGB = dict(
    zip(
        COLOURS,
        ((220, 40, 40), (40, 170, 60), (50, 80, 225), (235, 210, 50), (150, 60, 190), (60, 205, 215), (245, 245, 245)),
        strict=True,
    )
)
BRIGHT = {"yellow", "cyan", "white", "green"}  # text on these is black, on the others white
EVALUATION_SEEDS = 1 << 40  # evaluation seeds start here; training seeds stay below
_PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg",
    "hubble_deep_field.jpg", "ihc.png",
)  # fmt: skip
_TEXTURES = ("brick.png", "grass.png", "gravel.png", "camera.png", "coins.png")


@dataclass
class Thing:
    """Something a question can be about: its names, its cell (row * 3 + column) and, if it carries text, the text."""

    kind: str  # shape, label, tag, text or bar
    cell: int = 0
    colour: str = ""
    shape: str = ""
    size: str = ""
    depth: str = ""  # front or behind, for the two shapes that overlap
    text: str = ""
    line: int = 0  # page: line from 0
    value: int = 0  # chart: height 1..9


@dataclass
class Scene:
    """One picture, what is in it, and the words that are true of each patch.

    labels: (576, len(DENSE)) uint8, 1 where the word is true of the patch.
    weight: (576,) float32, 1 for patches that show something, 0 for patches shared by several things, small elsewhere.
    """

    kind: str
    image: Image.Image
    things: list[Thing]
    labels: np.ndarray
    weight: np.ndarray
    seed: int = 0


@dataclass
class _Canvas:
    """A picture under construction, its owner map, and the words and priority of every owner."""

    image: Image.Image
    pen: ImageDraw.ImageDraw = field(init=False)
    owner: Image.Image = field(init=False)
    mark: ImageDraw.ImageDraw = field(init=False)
    words: list[list[str]] = field(default_factory=list)
    priority: list[float] = field(default_factory=list)
    centres: list[tuple[int, int, int]] = field(default_factory=list)  # x, y, owner

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)
        self.owner = Image.new("L", (SIZE, SIZE), 0)
        self.mark = ImageDraw.Draw(self.owner)

    def own(self, words: list[str], priority: float = 1.0) -> int:
        """Register an owner; its number is the value to draw with into the owner map."""
        self.words.append(words)
        self.priority.append(priority)
        return len(self.words)

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        owner = (
            np.asarray(self.owner).reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(GRID * GRID, PATCH * PATCH)
        )
        count = len(self.words) + 1
        flat = (np.arange(GRID * GRID)[:, None] * count + owner).ravel()
        pixels = np.bincount(flat, minlength=GRID * GRID * count).reshape(GRID * GRID, count)[:, 1:]
        score = pixels * np.asarray(self.priority)
        best = score.argmax(1)
        won = pixels[np.arange(GRID * GRID), best]
        ranked = np.sort(score, 1)
        runner_up = ranked[:, -2] if count > 2 else np.zeros(GRID * GRID)
        top = ranked[:, -1]
        clear = (won >= 12) & (top >= 1.25 * runner_up)
        vague = (won > 2) & ~clear
        table = np.zeros((count - 1, len(DENSE)), np.uint8)
        for i, words in enumerate(self.words):
            table[i, [DENSE_INDEX[w] for w in words]] = 1
        labels = table[best] * clear[:, None]
        for x, y, who in self.centres:
            patch = y // PATCH * GRID + x // PATCH
            if (
                best[patch] == who - 1 or won[patch] < 12
            ):  # a ring's centre is a hole: it still says what it is the centre of
                labels[patch] = table[who - 1]
                labels[patch, DENSE_INDEX["object"]] = 1
                clear[patch], vague[patch] = True, False
        weight = np.where(clear, 1.0, np.where(vague, 0.0, BACKGROUND)).astype(np.float32)
        return labels, weight


# ---------------------------------------------------------------------------------------------------------- raw material


@lru_cache(1)
def _photographs() -> list[np.ndarray]:
    """Real photographs that ship inside scikit-learn and scikit-image, RGB uint8, at a width of 400 px."""
    skimage = require("skimage", "testbed")
    samples = require("sklearn.datasets", "testbed").load_sample_images().images
    folder, pictures = Path(skimage.__file__).parent / "data", [Image.fromarray(a) for a in samples]
    pictures += [Image.open(folder / name).convert("RGB") for name in (*_PHOTOS, *_TEXTURES)]
    return [
        np.asarray(p.resize((400, max(240, 400 * p.height // p.width)), Image.Resampling.BILINEAR)) for p in pictures
    ]


@lru_cache(1)
def _noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (3 * SIZE, 3 * SIZE, 3)).astype(np.float32)


@lru_cache(2)
def _scans(evaluation: bool) -> list[list[np.ndarray]]:
    """Handwritten digits (scikit-learn, 1,797 scans of 8 x 8), per digit; every fifth scan is for evaluation only."""
    digits = require("sklearn.datasets", "testbed").load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == evaluation
    return [list((digits.images[chosen & (digits.target == d)] * 15.9).astype(np.uint8)) for d in range(10)]


@lru_cache(1)
def _font_files() -> tuple[str | None, ...]:
    matplotlib = require("matplotlib", "testbed")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
    return (*(str(folder / f"{n}.ttf") for n in names), None)  # None: the font inside Pillow


@lru_cache(64)
def _font(index: int, size: int) -> Any:
    file = _font_files()[index]
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@lru_cache(8192)
def _glyph(index: int, size: int, char: str, width: int) -> Image.Image:
    """One capital letter or digit as a mask of `width` columns; glyphs wider than that are squeezed."""
    left, _, right, _ = _font(index, size).getbbox(char, anchor="ls")
    tall = round(size * 0.76)
    mask = Image.new("L", (right - left + 2, tall + 3), 0)
    ImageDraw.Draw(mask).text((1 - left, tall + 1), char, fill=255, font=_font(index, size), anchor="ls")
    if mask.width > width:
        mask = mask.resize((width, mask.height), Image.Resampling.BILINEAR)
    box = Image.new("L", (width, mask.height), 0)
    box.paste(mask, ((width - mask.width) // 2, 0))
    return box


def _background(rng: random.Random, kinds: tuple[str, ...] = ("plain", "noise", "photo")) -> Image.Image:
    kind = rng.choice(kinds)
    if kind == "photo":
        photo = rng.choice(_photographs())
        y, x = rng.randrange(photo.shape[0] - SIZE + 1), rng.randrange(photo.shape[1] - SIZE + 1)
        crop = photo[y : y + SIZE, x : x + SIZE]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        return Image.fromarray((crop * rng.uniform(0.35, 0.8)).astype(np.uint8))
    base = np.asarray([rng.randrange(20, 110) for _ in range(3)], np.float32)
    base = base * 0.4 + base.mean() * 0.6
    if kind == "plain":
        return Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in base))
    y, x = rng.randrange(2 * SIZE), rng.randrange(2 * SIZE)
    pixels = base + _noise()[y : y + SIZE, x : x + SIZE] * rng.uniform(6, 22)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _text(rng: random.Random, evaluation: bool, low: int, high: int) -> str:
    """A word from the list, a string of random letters (so that no language prior can guess it), or a number."""
    draw, length = rng.random(), rng.randint(low, high)
    if draw < 0.35:
        return rng.choice([w for w in PAGE_WORDS if low <= len(w) <= high and held_out(w) == evaluation])
    if draw < 0.75:
        return "".join(rng.choice(LETTERS) for _ in range(length))
    return "".join(rng.choice("0123456789") for _ in range(min(length, 4)))


# ---------------------------------------------------------------------------------------------------------- drawing things


def _shape(canvas: _Canvas, shape: str, cx: int, cy: int, r: int, rgb: tuple[int, ...], owner: int) -> None:
    """Draw one shape with a thin dark rim into the picture, and the same area into the owner map."""
    for pen, fill, rim in ((canvas.pen, rgb, (12, 12, 12)), (canvas.mark, owner, owner)):
        box = (cx - r, cy - r, cx + r, cy + r)
        if shape == "circle":
            pen.ellipse(box, fill=fill, outline=rim)
        elif shape == "ring":
            pen.ellipse(box, outline=rim, width=max(4, r // 3) + 1)
            pen.ellipse((cx - r + 1, cy - r + 1, cx + r - 1, cy + r - 1), outline=fill, width=max(4, r // 3) - 1)
        elif shape == "square":
            s = round(r * 0.86)
            pen.rectangle((cx - s, cy - s, cx + s, cy + s), fill=fill, outline=rim)
        elif shape == "triangle":
            pen.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=fill, outline=rim)
        elif shape == "cross":
            t = max(2, r // 3)
            points = [
                (-t, -r),
                (t, -r),
                (t, -t),
                (r, -t),
                (r, t),
                (t, t),
                (t, r),
                (-t, r),
                (-t, t),
                (-r, t),
                (-r, -t),
                (-t, -t),
            ]
            pen.polygon([(cx + x, cy + y) for x, y in points], fill=fill, outline=rim)
        else:
            angles = np.arange(10) * np.pi / 5 - np.pi / 2
            radii = np.where(np.arange(10) % 2 == 0, r * 1.08, r * 0.46)
            points = list(zip(cx + radii * np.cos(angles), cy + radii * np.sin(angles), strict=True))
            pen.polygon(points, fill=fill, outline=rim)


def _place(cell: int) -> list[str]:
    return [ROWS[cell // 3], COLUMNS[cell % 3]]


def _centre(rng: random.Random, cell: int, reach: int) -> tuple[int, int]:
    """A point in a cell: the middle of one of its patches, at most `reach` patches off its centre, give or take a pixel."""
    x, y = (4 + PATCH * rng.randint(4 - reach, 3 + reach) + rng.randint(-1, 1) for _ in range(2))
    return cell % 3 * CELL + x, cell // 3 * CELL + y


def _add_shape(
    canvas: _Canvas, rng: random.Random, cell: int, shapes: tuple[str, ...] = SHAPES, colours: tuple[str, ...] = COLOURS
) -> Thing:
    thing = Thing("shape", cell, rng.choice(colours), rng.choice(shapes), rng.choice(("small", "big")))
    r = rng.choice((9, 10)) if thing.size == "small" else rng.choice((18, 20))
    cx, cy = _centre(rng, cell, 3 if thing.size == "small" else 2)
    owner = canvas.own([thing.colour, thing.shape, thing.size, *_place(cell)])
    _shape(canvas, thing.shape, cx, cy, r, RGB[thing.colour], owner)
    canvas.centres.append((cx, cy, owner))
    return thing


def _add_overlap(canvas: _Canvas, rng: random.Random, cell: int) -> list[Thing]:
    """A big shape with a small one of another shape and colour partly in front of it."""
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(COLOURS, 2)
    x, y = _centre(rng, cell, 1)
    dx, dy = rng.choice(((16, 8), (8, 16)))
    front = (x + rng.choice((-dx, dx)), y + rng.choice((-dy, dy)))
    pair = []
    for i, (cx, cy) in enumerate(((x, y), front)):
        thing = Thing("shape", cell, colours[i], shapes[i], ("big", "small")[i], ("behind", "front")[i])
        owner = canvas.own([thing.colour, thing.shape, thing.size, thing.depth, *_place(cell)])
        _shape(canvas, thing.shape, cx, cy, (20, 10)[i], RGB[thing.colour], owner)
        canvas.centres.append((cx, cy, owner))
        pair.append(thing)
    return pair


def _write(
    canvas: _Canvas, text: str, x: int, y: int, font: int, size: int, ink: tuple[int, ...], words: list[str]
) -> None:
    """Print `text` in capitals, one letter every 8 px; each letter owns its slot with its character and ordinal."""
    for i, char in enumerate(text):
        glyph = _glyph(font, size, char.upper(), PATCH)
        canvas.image.paste(ink, (x + i * PATCH, y), glyph)
        owner = canvas.own([f"'{char}", LETTER_ORDINALS[i], *words], 4.0)
        canvas.mark.rectangle((x + i * PATCH, y, x + (i + 1) * PATCH - 1, y + glyph.height - 1), fill=owner)


def _handwrite(
    canvas: _Canvas,
    rng: random.Random,
    text: str,
    x: int,
    y: int,
    ink: tuple[int, ...],
    words: list[str],
    evaluation: bool,
) -> None:
    """Paste real handwritten digits, 16 x 16 px each."""
    for i, char in enumerate(text):
        scan = Image.fromarray(rng.choice(_scans(evaluation)[int(char)])).resize((16, 16), Image.Resampling.BILINEAR)
        canvas.image.paste(ink, (x + 16 * i, y), scan)
        owner = canvas.own([f"'{char}", LETTER_ORDINALS[i], *words], 4.0)
        canvas.mark.rectangle((x + 16 * i + 1, y, x + 16 * i + 14, y + 15), fill=owner)


def _raster(rng: random.Random, low: int, high: int) -> int:
    """A place on the patch raster between two pixel bounds, off by at most one pixel."""
    return PATCH * rng.randint(-(-low // PATCH), high // PATCH) + rng.randint(-1, 1)


def _add_label(canvas: _Canvas, rng: random.Random, cell: int, colour: str, evaluation: bool) -> Thing:
    """A coloured label with a word, a printed number, or two or three handwritten digits."""
    words = [colour, "label", *_place(cell)]
    ink = (10, 10, 10) if colour in BRIGHT else (250, 250, 250)
    handwritten = rng.random() < 0.3
    text = _text(rng, evaluation, 3, 5)
    if handwritten:
        text = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 3)))
    wide = (16 if handwritten else 8) * len(text)
    left, top = cell % 3 * CELL, cell // 3 * CELL
    x, y = _raster(rng, left + 6, left + CELL - wide - 6), _raster(rng, top + 8, top + CELL - 24)
    box = (x - 4, y - 4, x + wide + 3, y + 19)
    canvas.pen.rectangle(box, fill=RGB[colour], outline=(12, 12, 12))
    canvas.mark.rectangle(box, fill=canvas.own(words))
    if handwritten:
        _handwrite(canvas, rng, text, x, y, ink, words, evaluation)
    else:
        _write(canvas, text, x, y + 2, rng.randrange(len(_font_files())), rng.randint(13, 15), ink, words)
    return Thing("label", cell, colour, text=text)


def _add_tag(canvas: _Canvas, rng: random.Random, cell: int, colour: str) -> Thing:
    """A tiny tag (14 x 16 px) with one letter: the needle."""
    left, top = cell % 3 * CELL, cell // 3 * CELL
    x, y = _raster(rng, left + 4, left + CELL - 12), _raster(rng, top + 2, top + CELL - 18)
    box, letter = (x - 3, y, x + 10, y + 15), rng.choice(LETTERS)
    canvas.pen.rectangle(box, fill=RGB[colour], outline=(12, 12, 12))
    canvas.mark.rectangle(box, fill=canvas.own([colour, "tag", *_place(cell)]))
    ink = (10, 10, 10) if colour in BRIGHT else (250, 250, 250)
    words = [colour, "tag", *_place(cell)]
    _write(canvas, letter, x, y + 2, rng.randrange(len(_font_files())), rng.randint(13, 14), ink, words)
    return Thing("tag", cell, colour, text=letter)


# ------------------------------------------------------------------------------------------------------- kinds of picture


def _shapes(canvas: _Canvas, rng: random.Random, evaluation: bool) -> list[Thing]:
    cells = rng.sample(range(9), rng.randint(2, 5))
    things: list[Thing] = []
    if rng.random() < 0.5:
        things += _add_overlap(canvas, rng, cells.pop())
    few = rng.random() < 0.35  # few colours and shapes, so that there is something to count
    shapes, colours = (tuple(rng.sample(SHAPES, 2)), tuple(rng.sample(COLOURS, 2))) if few else (SHAPES, COLOURS)
    return things + [_add_shape(canvas, rng, cell, shapes, colours) for cell in cells[: 5 - len(things)]]


def _labels(canvas: _Canvas, rng: random.Random, evaluation: bool) -> list[Thing]:
    count = rng.randint(2, 5)
    cells, colours = rng.sample(range(9), count + rng.randint(0, 2)), rng.sample(COLOURS, count)
    things = [_add_label(canvas, rng, cell, colour, evaluation) for cell, colour in zip(cells, colours, strict=False)]
    return things + [_add_shape(canvas, rng, cell) for cell in cells[count:]]


def _tags(canvas: _Canvas, rng: random.Random, evaluation: bool) -> list[Thing]:
    count = rng.randint(2, 4)
    cells, colours = rng.sample(range(9), count + rng.randint(1, 3)), rng.sample(COLOURS, count)
    things = [_add_tag(canvas, rng, cell, colour) for cell, colour in zip(cells, colours, strict=False)]
    return things + [_add_shape(canvas, rng, cell) for cell in cells[count:]]


def _bright(canvas: _Canvas) -> bool:
    """Whether the middle of the picture is light, so that ink has to be dark."""
    return int(np.asarray(canvas.image)[96, 96].sum()) > 384


def _page(canvas: _Canvas, rng: random.Random, evaluation: bool) -> list[Thing]:
    """Four to seven lines of three columns; black on light or light on dark, sometimes ruled like a table."""
    lines, font, size = rng.randint(4, 7), rng.randrange(len(_font_files())), rng.randint(12, 14)
    ink = (20, 20, 30) if _bright(canvas) else (240, 240, 235)
    top = _raster(rng, 1, SIZE - lines * 24 - 1)
    ruled, things = rng.random() < 0.4, []
    for line in range(lines):
        y = top + line * 24
        if ruled:
            canvas.pen.line((2, y - 4, SIZE - 3, y - 4), fill=(128, 128, 128))
        for column in range(3):
            text = _text(rng, evaluation, 3, 4)
            x = _raster(rng, column * CELL + 7, (column + 1) * CELL - 7 - PATCH * len(text))
            _write(canvas, text, x, y + 2, font, size, ink, [NUMBERS[line], COLUMNS[column]])
            things.append(Thing("text", column, text=text, line=line))
    if ruled:
        for x in (CELL, 2 * CELL):
            canvas.pen.line((x, top - 4, x, top + lines * 24 - 4), fill=(128, 128, 128))
    return things


def _chart(canvas: _Canvas, rng: random.Random, evaluation: bool) -> list[Thing]:
    """Three to five bars of different colours and heights 1..9 over nine grid lines."""
    count, unit = rng.randint(3, 5), 2 * PATCH
    base, left = SIZE - PATCH * rng.randint(1, 4), rng.randint(8, 20)
    pitch = (SIZE - left - 6) // count
    ink = (90, 90, 95) if _bright(canvas) else (165, 165, 160)
    for k in range(10):
        canvas.pen.line((left - 4, base - k * unit, SIZE - 5, base - k * unit), fill=ink)
    values, things = rng.sample(range(1, 10), count), []
    wide = rng.randint(min(18, pitch - 8), pitch - 6)
    for i, (value, colour) in enumerate(zip(values, rng.sample(COLOURS, count), strict=True)):
        x = left + i * pitch + (pitch - wide) // 2
        box = (x, base - value * unit, x + wide, base)
        words = [colour, "bar", NUMBERS[value - 1]]
        words += ["tallest"] * (value == max(values)) + ["shortest"] * (value == min(values))
        canvas.pen.rectangle(box, fill=RGB[colour], outline=(12, 12, 12))
        canvas.mark.rectangle(box, fill=canvas.own(words))
        things.append(Thing("bar", i, colour, value=value))
    return things


_DRAW = {"shapes": _shapes, "labels": _labels, "tags": _tags, "page": _page, "chart": _chart}


def draw(seed: int, kind: str | None = None) -> Scene:
    """One scene, decided by its seed alone.

    Args:
        seed: seeds from `EVALUATION_SEEDS` on use the evaluation scans and words, seeds below never do.
        kind: one of `KINDS`; None draws one.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind is not None and kind not in _DRAW:
        raise ValueError(f"testbed.draw: unknown kind of picture {kind!r}; use one of {', '.join(KINDS)}")
    rng = random.Random(seed)
    kind = kind or rng.choice(KINDS)
    if kind in ("page", "chart"):
        tone = rng.choice((rng.randrange(205, 256), rng.randrange(205, 256), rng.randrange(10, 50)))
        pixels = tone + _noise()[:SIZE, :SIZE] * rng.choice((0, 0, 4, 8))
        background = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    else:
        background = _background(rng)
    canvas = _Canvas(background)
    things = _DRAW[kind](canvas, rng, seed >= EVALUATION_SEEDS)
    labels, weight = canvas.labels()
    return Scene(kind, canvas.image, things, labels, weight, seed)
