"""The shipped model, questions of every kind, and what the bench's own runner says to them."""

import pytest

from foveate import testbed


@pytest.fixture(scope="session")
def folder():
    """The shipped weights: a random model repeats one word, whatever it is asked."""
    try:
        return str(testbed.model_path())
    except FileNotFoundError:
        pytest.skip("this checkout has no testbed weights")


@pytest.fixture(scope="session")
def samples():
    """One question about one picture, about two, and after earlier turns, of each two."""
    return testbed.samples(["attribute", "two-images", "later-turns"], 2)


@pytest.fixture(scope="session")
def asked(folder, samples):
    """plan -> answers of the bench's own runner to these samples in batches of four."""
    from foveate.bench.runner import STOCK, Entry, answers
    from foveate.bench.tasks import Task
    from foveate.plan import Plan

    model, processor = testbed.load(path=folder)
    task = Task("some", samples, testbed.inputs, testbed.correct)

    def ask(plan, batch=4):
        entries = [Entry(STOCK, None), Entry("compressed", Plan.of(plan))] if plan else [Entry(STOCK, None)]
        return answers(model, processor, task, entries, batch, 10)[0][entries[-1].label]

    return ask
