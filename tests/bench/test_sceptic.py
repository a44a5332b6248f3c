"""What a sceptic asks of a bench: does it catch a method that is broken, and does it stay quiet where there is nothing?"""

import random
from dataclasses import dataclass

import pytest
from scipy.stats import binom

from foveate import testbed
from foveate.bench import tasks
from foveate.bench.grid.grid import Grid
from foveate.bench.grid.ledger import Ledger
from foveate.bench.stats import paired
from foveate.method import Card, Method
from foveate.plan import Plan
from foveate.testbed import questions, scenes
from foveate.tokens import Reduction

CELL = 4  # the middle one of 3 x 3; a third of the picture's side is 8 tokens


@dataclass(frozen=True)
class Hole(Method):
    """Keeps everything but the middle of the picture: 512 of 576 tokens, and never the ones that are asked about."""

    card = Card(name="hole", title="Broken on purpose")

    def __call__(self, view):
        middle = (view.row // 8 == 1) & (view.col // 8 == 1)
        return Reduction.drop((~middle).nonzero()[:, 0], view.n)


@pytest.fixture(scope="module")
def model():
    return testbed.load("cpu")


def about_the_middle(count):
    """Questions of the testbed's kinds whose answer lies in the middle of the picture."""
    found, seed = [], scenes.EVALUATION_SEEDS + 7_000_000
    while len(found) < count:
        seed += 1
        rng = random.Random(seed)
        slice = rng.choice(("attribute", "reading-short"))
        scene = scenes.draw(seed, questions.KIND_OF.get(slice, "shapes"))
        turn = questions.ask(scene, rng, slice)
        if turn is not None and turn.about is not None and turn.about.cell == CELL:
            found.append(testbed.Sample(f"middle-{seed}", slice, [scene.image], turn.question, turn.answer))
    return tasks.Task("middle", found, testbed.inputs, testbed.correct)


def measured(model, task, **options):
    one = Grid(*model, task, **options)
    with Ledger(None, one.setting()) as ledger:
        one.measure(ledger)
        return one.result(ledger, "")


def test_a_broken_method_is_caught(model):
    """An eighth of the tokens is gone, and the bench says that it was the wrong eighth."""
    plans = [Plan.of(Hole(), 512), Plan.of("random", 512)]
    result = measured(model, about_the_middle(32), methods=[], keeps=[], plans=plans)
    hole, drawn = (next(row for row in result["rows"] if row["method"] == name) for name in ("hole", "random"))
    assert hole["tokens_per_image"] == drawn["tokens_per_image"] == 512
    change = hole["against_uncompressed"]
    assert change["high"] < 0 and change["p"] < 1e-3
    assert drawn["against_uncompressed"]["high"] >= 0


def test_nothing_against_nothing_alarms_no_more_than_stated(model):
    """Twenty pairs of random baselines that differ in their seed alone, at the level of 5 %."""
    pairs = 20
    task = tasks.testbed_task(["attribute", "position", "relation"], 16)
    result = measured(model, task, methods=[], keeps=[48], seeds=2 * pairs)
    drawn = [row for row in result["rows"] if row["method"] == "random"]
    right = [[c == "1" for c in result["outcomes"][f"{row['label']}|clean|turn"]["right"]] for row in drawn]
    found = [paired(one, other) for one, other in zip(right[::2], right[1::2], strict=True)]
    most = binom.ppf(0.999, pairs, 0.05)
    assert sum(one["gained"] + one["lost"] for one in found) > 2 * pairs, "seeds that answer alike would prove nothing"
    assert sum(one["p"] < 0.05 for one in found) <= most
    assert sum(one["low"] > 0 or one["high"] < 0 for one in found) <= most
