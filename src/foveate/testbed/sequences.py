"""Turns scenes and questions into token ids, exactly as the chat template and the processor would.

A training sequence is a *tree*: one or two pictures as the trunk, and many short conversations as branches. A branch
sees the trunk and itself, and its positions continue from the trunk, so every branch looks to the model like the
evaluation's own format, at the price of one picture for all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from . import questions, scenes
from .questions import Turn
from .text import ASSISTANT, BOS, EOS, IMAGE, KNOWN, PAD, TOKEN_ID, USER

TWO = "two-images"
TWO_CONTENT = ("first picture", "second picture")  # said before each of two pictures
_KNOWN = frozenset(KNOWN)


def encode(text: str) -> list[int]:
    """Ids of lower-case words: known words whole, others spelled after a "▁"."""
    out: list[int] = []
    for word in text.split():
        out += [TOKEN_ID[f"▁{word}"]] if word in _KNOWN else [TOKEN_ID["▁"], *(TOKEN_ID[c] for c in word)]
    return out


def trunk(pictures: int) -> list[int]:
    """Ids up to and including the last picture."""
    image = [TOKEN_ID[IMAGE]] * scenes.GRID**2
    ids = [TOKEN_ID[BOS], TOKEN_ID[USER]]
    if pictures == 1:
        return ids + image
    return ids + [i for words in TWO_CONTENT[:pictures] for i in encode(words) + image]


def branch(turns: list[Turn]) -> tuple[list[int], list[int]]:
    """Ids after the trunk, and for each of them the answer's ordinal in the conversation, or -1 outside answers."""
    ids: list[int] = []
    answer: list[int] = []
    for i, turn in enumerate(turns):
        asked = [TOKEN_ID[USER]] * (i > 0) + encode(turn.question) + [TOKEN_ID[ASSISTANT]]
        said = [*encode(turn.answer), TOKEN_ID[EOS]]
        ids += asked + said
        answer += [-1] * len(asked) + [i] * len(said)
    return ids, answer


@dataclass
class Tree:
    """One training sequence: its scenes and, over the text after the trunk, ids, branch, position, and answer number (or -1)."""

    drawn: list[scenes.Scene]
    ids: list[int]
    branches: list[int]
    positions: list[int]
    answers: list[int]
    slices: list[str]  # per answer number


def grow(seed: int, kind: str, budget: int = 224) -> Tree:
    """Draw one scene (two for kind "two-images") and as many conversations about it as fit into `budget` text tokens."""
    rng = random.Random(seed ^ 0x5EED)
    drawn = (
        [scenes.draw(seed, "shapes"), scenes.draw(seed + (1 << 34), "shapes")]
        if kind == TWO
        else [scenes.draw(seed, kind)]
    )
    start = len(trunk(len(drawn)))
    tree = Tree(drawn, [], [], [], [], [])
    asked: set[tuple[str, ...]] = set()
    for number in range(40):
        if kind == TWO:
            turn = questions.about_two(drawn[0], drawn[1], rng)
            turns, names = [turn] if turn else [], [TWO]
        elif number % 6 == 5:
            turns = questions.conversation(drawn[0], rng, rng.randint(2, 4))
            names = ["later-turns"] * len(turns)
        else:
            name = rng.choice(questions.SCENE_SLICES[kind])
            turn = questions.ask(drawn[0], rng, name)
            turns, names = [turn] if turn else [], [name]
        key = tuple(t.question for t in turns)
        if not turns or key in asked:
            continue
        asked.add(key)
        ids, answers = branch(turns)
        if len(tree.ids) + len(ids) > budget:
            break
        tree.positions += range(start, start + len(ids))
        tree.branches += [number] * len(ids)
        tree.answers += [a + len(tree.slices) if a >= 0 else -1 for a in answers]
        tree.slices += names
        tree.ids += ids
    return tree


def collate(trees: list[Tree]) -> dict[str, np.ndarray]:
    """Pad the text of trees with equally many pictures; arrays as `training.joint_stage` uses them."""
    length = max(len(t.ids) for t in trees)

    def pad(rows: list[list[int]], value: int) -> np.ndarray:
        return np.asarray([row + [value] * (length - len(row)) for row in rows])

    offset = np.cumsum([0, *(len(t.slices) for t in trees)])
    flat = [s for t in trees for s in t.slices]
    names = list(questions.SLICES)
    return {
        "images": np.stack([np.asarray(d.image) for t in trees for d in t.drawn]),
        "labels": np.stack([d.labels for t in trees for d in t.drawn]),
        "weight": np.stack([d.weight for t in trees for d in t.drawn]),
        "ids": pad([t.ids for t in trees], TOKEN_ID[PAD]),
        "branch": pad([t.branches for t in trees], -1),
        "position": pad([t.positions for t in trees], 0),
        "answer": pad(
            [[a + int(o) if a >= 0 else -1 for a in t.answers] for t, o in zip(trees, offset, strict=False)], -1
        ),
        "slice": np.asarray([names.index(s) for s in flat]),
    }
