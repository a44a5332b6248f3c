"""Methods are found, and never lost silently."""

import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from foveate import methods, registry
from foveate.errors import PlanError
from foveate.method import Card, Method
from foveate.methods.norm import Norm
from foveate.plan import Plan
from foveate.tokens import Reduction, View


@dataclass(frozen=True)
class Plugged(Method):
    card = Card(name="plugged", title="A plug-in")
    strength: float = 0.5

    def __call__(self, view: View) -> Reduction:
        return Reduction.identity(view.n)


class Entry:
    """As importlib.metadata gives it."""

    def __init__(self, name, target):
        self.name, self.target, self.value = name, target, f"elsewhere:{name}"

    def load(self):
        return self.target


@pytest.fixture
def plug(monkeypatch):
    """Install entry points for one test."""

    def install(*entries):
        monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else ())
        registry.classes.cache_clear()
        return registry.classes

    yield install
    monkeypatch.undo()
    registry.classes.cache_clear()


def test_the_package_holds_what_its_folder_holds():
    files = {path.stem for path in Path(methods.__path__[0]).glob("*.py")} - {"__init__"}
    assert len(files) >= 9 and files <= set(registry.classes())
    assert all(card.name == name and card.title for name, card in registry.cards().items())
    assert registry.get("norm") is Norm


@pytest.mark.parametrize(
    ("name", "near"), [("divprun", "divprune"), ("vision_zip", "visionzip"), ("fastvlm", "fastervlm")]
)
def test_unknown_names_offer_near_ones(name, near):
    with pytest.raises(PlanError, match=f"no method named '{name}'.*\n.*{near}"):
        registry.get(name)


def test_unknown_name_with_nothing_near():
    with pytest.raises(PlanError, match="foveate methods"):
        registry.get("zzzzzz")


def module(name, *classes):
    made = types.ModuleType(f"elsewhere.{name}")
    for cls in classes:
        copy = type(cls.__name__, (cls,), {"__module__": made.__name__, "card": cls.card})
        setattr(made, cls.__name__, copy)
    return made


def test_entry_points_name_a_class_or_a_module(plug):
    assert plug(Entry("plugged", Plugged))()["plugged"] is Plugged
    assert str(Plan.of("plugged:keep=64,strength=1.5")) == "plugged:keep=64/image,strength=1.5"
    found = plug(Entry("plugged", module("plugged", Plugged)))()["plugged"]
    assert issubclass(found, Plugged) and list(registry.classes()) == sorted(registry.classes())


def test_real_entry_point_objects_work(plug):
    entry = EntryPoint("norm", "foveate.methods.norm:Norm", registry.GROUP)
    with pytest.raises(PlanError, match="two methods are named 'norm'"):
        plug(entry)()


@dataclass(frozen=True)
class Greedy(Plugged):
    card = Card(name="greedy", title="Takes a word of the plan's")
    keep: float = 0.5


class Cardless(Method):
    def __call__(self, view):
        return Reduction.identity(view.n)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("other", Plugged), "a card named 'other'"),
        (Entry("cardless", Cardless), "a card named 'cardless'"),
        (Entry("number", int), "a card named 'number'"),
        (Entry("empty", module("empty")), "defines 0 methods"),
        (Entry("both", module("both", Plugged, Norm)), "defines 2 methods"),
        (Entry("misnamed", module("misnamed", Plugged)), "a card named 'misnamed'"),
        (Entry("greedy", Greedy), "an option named keep"),
    ],
)
def test_what_is_no_method_is_an_error(plug, entry, message):
    with pytest.raises(PlanError, match=message):
        plug(entry)()


def test_import_errors_come_through(plug):
    class Broken(Entry):
        def load(self):
            raise ImportError("no module named torchmagic")

    with pytest.raises(ImportError, match="torchmagic"):
        plug(Broken("broken", None))()


@pytest.mark.parametrize(
    ("field", "value"), [("count", "some"), ("stages", ("tower",)), ("needs", ("soul",)), ("mechanism", "magic")]
)
def test_cards_are_checked(field, value):
    with pytest.raises(PlanError, match=f"card of 'x'.*{field}"):
        Card(name="x", title="X", **{field: value})
