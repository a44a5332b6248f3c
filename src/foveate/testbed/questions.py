"""Turns a scene into questions with one right answer each.

Every question names things only by descriptions that fit exactly one of them, and ends in the words asked about.
Yes/no questions are balanced, and half of the "no" answers name a colour and a shape that are both in the picture,
but not together.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from .scenes import Scene, Thing
from .words import COLOURS, COLUMNS, NUMBERS, ROWS, SHAPES

SLICES = {
    "attribute": "colour, shape or size of one object",
    "count": "number of objects (two to four), or of those of a colour",
    "position": "where an object is on a 3 x 3 raster, or what is at a place",
    "relation": "which of two overlapping objects is in front of the other, and which behind",
    "existence": "is there a ...: yes/no, balanced, half of the negatives adversarial",
    "reading-short": "a word, a printed number or real handwritten digits on a coloured label",
    "reading-dense": "one word or number out of 12 to 21 on a page or table",
    "small-detail": "a letter on a tag of 14 x 15 px (the needle)",
    "chart": "values, extremes and comparisons of bars",
    "two-images": "two pictures: a question about one of them, or which one it is",
    "later-turns": 'the second, third or fourth question of a conversation, a quarter of them about "it"',
}
KIND_OF = {"reading-short": "labels", "reading-dense": "page", "small-detail": "tags", "chart": "chart"}
SCENE_SLICES = {
    "shapes": ("attribute", "count", "count", "count", "position", "relation", "existence"),
    "labels": ("reading-short", "reading-short", "position"),
    "tags": ("small-detail", "small-detail", "position"),
    "page": ("reading-dense",),
    "chart": ("chart",),
}


class Turn(NamedTuple):
    """A question, its answer, the chance of a uniform guess among answers of its type, and the thing asked about, if one."""

    question: str
    answer: str
    chance: float
    about: Thing | None = None


def place(thing: Thing) -> str:
    """Name of the cell a thing is in, such as "top left"."""
    return f"{ROWS[thing.cell // 3]} {COLUMNS[thing.cell % 3]}"


def _shapes(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if t.kind == "shape"]


def _names(thing: Thing, things: list[Thing], without: str = "") -> list[str]:
    """Descriptions that fit only this thing, never using the attribute `without`."""
    options = {
        f"{thing.shape}": ("shape",),
        f"{thing.colour} object": ("colour",),
        f"{thing.colour} {thing.shape}": ("colour", "shape"),
        f"{thing.size} {thing.shape}": ("size", "shape"),
        f"{thing.size} {thing.colour} object": ("size", "colour"),
    }
    return [
        name
        for name, fields in options.items()
        if without not in fields and sum(all(getattr(t, f) == getattr(thing, f) for f in fields) for t in things) == 1
    ]


def _attribute(scene: Scene, rng: random.Random) -> Turn | None:
    things = _shapes(scene)
    thing, ask = rng.choice(things), rng.choice(("colour", "colour", "shape", "shape", "size"))
    names = _names(thing, things, ask)
    if not names:
        return None
    word, options = {"colour": ("color", 7), "shape": ("shape", 6), "size": ("size", 2)}[ask]
    return Turn(f"what {word} is the {rng.choice(names)}", getattr(thing, ask), 1 / options, thing)


def _count(scene: Scene, rng: random.Random) -> Turn | None:
    things = _shapes(scene)
    if len(things) > 4:
        return None
    if rng.random() < 0.35:
        return Turn("how many objects", NUMBERS[len(things) - 1], 1 / 3)
    colour = rng.choice(things).colour
    number = sum(t.colour == colour for t in things)
    if number == 1 and rng.random() < 0.6:  # ones would be most of the answers
        return None
    return Turn(f"how many {colour} objects", NUMBERS[number - 1], 1 / 3)


def _position(scene: Scene, rng: random.Random) -> Turn | None:
    if scene.kind != "shapes":
        thing = rng.choice([t for t in scene.things if t.text])
        return Turn(f"where is the {thing.colour} {thing.kind}", place(thing), 1 / 9)
    things = _shapes(scene)
    thing = rng.choice(things)
    if rng.random() < 0.6:
        names = _names(thing, things)
        return Turn(f"where is the {rng.choice(names)}", place(thing), 1 / 9, thing) if names else None
    if sum(t.cell == thing.cell for t in things) != 1:
        return None
    if rng.random() < 0.5:
        return Turn(f"what color is at the {place(thing)}", thing.colour, 1 / 7, thing)
    return Turn(f"what shape is at the {place(thing)}", thing.shape, 1 / 6, thing)


def _relation(scene: Scene, rng: random.Random) -> Turn | None:
    overlapping = [t for t in _shapes(scene) if t.depth]
    if not overlapping:
        return None
    thing = rng.choice(overlapping)
    where = "in front" if thing.depth == "front" else "behind"
    if rng.random() < 0.5:
        return Turn(f"what shape is {where}", thing.shape, 1 / 6, thing)
    return Turn(f"what color is {where}", thing.colour, 1 / 7, thing)


def _existence(scene: Scene, rng: random.Random) -> Turn | None:
    things = _shapes(scene)
    there = {(t.colour, t.shape) for t in things}
    if rng.random() < 0.5:
        colour, shape = rng.choice(sorted(there))
    else:
        pool = [(c, s) for c in COLOURS for s in SHAPES]
        if rng.random() < 0.5:
            pool = [(c, s) for c in {t.colour for t in things} for s in {t.shape for t in things}]
        pool = sorted(set(pool) - there)
        if not pool:
            return None
        colour, shape = rng.choice(pool)
    return Turn(f"is there a {colour} {shape}", "yes" if (colour, shape) in there else "no", 1 / 2)


def _reading_short(scene: Scene, rng: random.Random) -> Turn | None:
    thing = rng.choice([t for t in scene.things if t.kind == "label"])
    return Turn(f"read the {thing.colour} label", thing.text, 0.0, thing)


def _small_detail(scene: Scene, rng: random.Random) -> Turn | None:
    thing = rng.choice([t for t in scene.things if t.kind == "tag"])
    return Turn(f"read the {thing.colour} tag", thing.text, 1 / 26, thing)


def _reading_dense(scene: Scene, rng: random.Random) -> Turn | None:
    thing = rng.choice(scene.things)
    return Turn(f"read line {NUMBERS[thing.line]} {COLUMNS[thing.cell]}", thing.text, 0.0)


def _chart(scene: Scene, rng: random.Random) -> Turn | None:
    bars, ask = scene.things, rng.random()
    one, two = rng.sample(bars, 2)
    if ask < 0.5:
        return Turn(f"what is the value of the {one.colour} bar", NUMBERS[one.value - 1], 1 / 9)
    if ask < 0.75:
        tallest = rng.random() < 0.5
        bar = (max if tallest else min)(bars, key=lambda b: b.value)
        return Turn(f"what color is the {'tallest' if tallest else 'shortest'} bar", bar.colour, 1 / 7)
    return Turn(
        f"is the {one.colour} bar taller than the {two.colour} bar", "yes" if one.value > two.value else "no", 1 / 2
    )


_ASK: dict[str, Callable[[Scene, random.Random], Turn | None]] = {
    "attribute": _attribute, "count": _count, "position": _position, "relation": _relation, "existence": _existence,
    "reading-short": _reading_short, "reading-dense": _reading_dense, "small-detail": _small_detail, "chart": _chart,
}  # fmt: skip


def ask(scene: Scene, rng: random.Random, slice: str) -> Turn | None:
    """One question of a single-picture, single-turn slice, or None if the scene allows none after a few tries."""
    for _ in range(12):
        if (turn := _ASK[slice](scene, rng)) is not None:
            return turn
    return None


def follow_up(previous: Turn, rng: random.Random) -> Turn | None:
    """A question about the "it" of the previous turn, asking what the previous question neither named nor asked."""
    thing, said = previous.about, f"{previous.question} {previous.answer}".split()
    if thing is None or thing.kind != "shape":
        return None
    options = [
        Turn("what color is it", thing.colour, 1 / 7, thing),
        Turn("what shape is it", thing.shape, 1 / 6, thing),
        Turn("where is it", place(thing), 1 / 9, thing),
    ]
    options = [t for t in options if t.answer.split()[-1] not in said]
    return rng.choice(options) if options else None


def conversation(scene: Scene, rng: random.Random, turns: int, it: float = 0.25) -> list[Turn]:
    """Up to `turns` different questions about one scene; the last one asks about "it" with probability `it`."""
    slices = SCENE_SLICES[scene.kind]
    out: list[Turn] = []
    for _ in range(4 * turns):
        if len(out) == turns:
            break
        if out and len(out) == turns - 1 and rng.random() < it and (turn := follow_up(out[-1], rng)):
            out.append(turn)
            continue
        turn = ask(scene, rng, rng.choice(slices))
        if turn and turn.question not in {t.question for t in out}:
            out.append(turn)
    return out


def about_two(first: Scene, second: Scene, rng: random.Random) -> Turn | None:
    """A question over two pictures of shapes."""
    for _ in range(12):
        scenes, which = (first, second), rng.randrange(2)
        word = ("first", "second")[which]
        if rng.random() < 0.4:
            thing = rng.choice(_shapes(scenes[which]))
            other = {(t.colour, t.shape) for t in _shapes(scenes[1 - which])}
            if (thing.colour, thing.shape) not in other:
                return Turn(f"which picture has a {thing.colour} {thing.shape}", word, 1 / 2)
            continue
        turn = ask(scenes[which], rng, rng.choice(("attribute", "attribute", "position", "existence")))
        if turn:
            return Turn(f"{turn.question} in the {word} picture", turn.answer, turn.chance)
    return None
