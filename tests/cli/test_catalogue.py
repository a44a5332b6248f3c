"""`foveate methods`, `method` and `families` show what the registry and the family classes say."""

import json

import pytest
from typer.testing import CliRunner

from foveate import Plan, registry
from foveate.cli import app
from foveate.cli.catalogue import options_of
from foveate.families import known


def invoke(*words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def listed(*words):
    return [card["name"] for card in json.loads(invoke("methods", "--json", *words))]


def test_methods_lists_the_registry():
    assert listed() == list(registry.classes())
    table = invoke("methods")
    assert all(name in table for name in registry.classes())


@pytest.mark.parametrize("field", ["mechanism", "guidance", "stage", "modality"])
def test_filters_split_the_methods_by_their_cards(field):
    def of(card):
        return {"stage": card.stages, "modality": card.modality}.get(field) or (getattr(card, field),)

    values = {value for card in registry.cards().values() for value in of(card)}
    for value in values:
        assert listed(f"--{field}", value) == [n for n, card in registry.cards().items() if value in of(card)]


def test_filters_combine_and_refuse_unknown_words():
    assert listed("--mechanism", "attention", "--stage", "input") == []
    done = CliRunner().invoke(app, ["methods", "--stage", "stage"])
    assert done.exit_code == 2 and "connector" in done.stderr


@pytest.mark.parametrize("name", registry.classes())
def test_method_shows_card_options_and_an_example_that_is_a_plan(name):
    shown = json.loads(invoke("method", name, "--json"))
    assert shown["title"] == registry.cards()[name].title
    assert shown["options"] == json.loads(json.dumps(options_of(registry.get(name))))  # tuples are lists there
    assert Plan.of(shown["example"]).steps
    text = " ".join(invoke("method", name).split())
    for option in shown["options"]:
        assert option["name"] in text and " ".join(option["meaning"].split())[:20] in text
    for difference in shown["differences"]:
        assert difference[:25] in text


def test_square_brackets_survive():
    card = registry.cards()["fastervlm"]
    assert "[CLS]" in card.title and "[CLS]" in invoke("method", "fastervlm")


def test_options_come_from_fields_and_docstring():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Example:
        """What it does.

        Attributes:
            alpha: the first,
                over two lines.
            beta, gamma: two at once.
        """

        alpha: float = 0.5
        beta: int = 1
        gamma: str = "x"

    rows = options_of(Example)
    assert [(o["name"], o["default"]) for o in rows] == [("alpha", 0.5), ("beta", 1), ("gamma", "x")]
    assert [o["meaning"] for o in rows] == ["the first, over two lines.", "two at once.", "two at once."]


def test_families_lists_every_family_class():
    rows = json.loads(invoke("families", "--json"))
    assert {t for row in rows for t in row["model_types"]} >= set(known())
    assert all({"family", "cls", "resizable", "note"} <= set(row) for row in rows)
    text = invoke("families")
    assert all(row["family"] in text for row in rows)
