"""Plans: the same from text, mappings, objects and files; and errors that help."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveate import registry
from foveate.budget import Budget
from foveate.errors import KeepError, PlanError
from foveate.method import Card, Method, Recipe, read, write
from foveate.methods.divprune import DivPrune
from foveate.methods.norm import Norm
from foveate.methods.random import Random
from foveate.methods.resize import Resize
from foveate.methods.visionzip import VisionZip
from foveate.plan import Plan, Step
from foveate.tokens import Reduction

CARD = Card(name="half", title="Every kind of option", stages=("connector", "layers"))


@dataclass(frozen=True)
class Half(Method):
    card = CARD
    text: str = "plain"
    pair: tuple = (1, 2)
    share: float = 0.5
    flag: bool = False
    nothing: object = None

    def __call__(self, view):
        return Reduction.identity(view.n)


@dataclass(frozen=True)
class Twice(Recipe):
    """A recipe: random to twice the budget, then norm to the budget."""

    card = Card(name="twice", title="Two steps under one name")
    seed: int = 3

    def steps(self, keep):
        assert isinstance(keep, Budget)
        return [
            (Random(seed=self.seed), Budget(keep.amount * 2, keep.unit, split=keep.split), "connector"),
            (Norm(), keep, "connector"),
        ]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The package's methods, and the two above."""
    classes = registry.classes() | {"half": Half, "twice": Twice}
    monkeypatch.setattr(registry, "classes", lambda: classes)


def test_one_plan_in_every_form():
    text = Plan.of("divprune:keep=0.25")
    assert text == Plan((Step(DivPrune(), Budget(0.25, "share"), "connector"),))
    for form in (
        "divprune:keep=25%",
        " divprune : keep = 0.25 ",
        ["divprune:keep=0.25"],
        {"method": "divprune", "keep": 0.25},
        {"steps": [{"method": "divprune", "keep": "25%", "stage": "connector"}]},
        {"steps": ["divprune:keep=0.25"]},
        text,
        text.steps[0],
        list(text.steps),
    ):
        assert Plan.of(form) == text
    for form in (
        "divprune",
        DivPrune,
        DivPrune(),
        [DivPrune()],
        {"method": "divprune"},
        {"method": "divprune", "keep": None},
    ):
        assert Plan.of(form, keep=0.25) == text


def test_several_steps_in_every_form():
    plan = Plan.of("resize:keep=50% > divprune:keep=128 > visionzip:keep=64,contextual=0.2")
    assert [s.method for s in plan.steps] == [Resize(), DivPrune(), VisionZip(contextual=0.2)]
    assert [s.stage for s in plan.steps] == ["input", "connector", "connector"]
    assert Plan.of(["resize:keep=50%", DivPrune(), "visionzip:keep=64,contextual=0.2"], keep=128) == plan
    assert Plan.of([{"method": "resize", "keep": "50%"}, *plan.steps[1:]]) == plan
    assert str(plan) == "resize:keep=50% > divprune:keep=128/image > visionzip:keep=64/image,contextual=0.2"


def everywhere(plan: Plan, path) -> None:
    """The plan survives text, mapping, JSON and file."""
    assert Plan.of(str(plan), positions=plan.positions) == plan
    assert Plan.of(plan.to_dict()) == plan
    assert Plan.of(json.loads(json.dumps(plan.to_dict()))) == plan
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.of(plan) == plan


keeps = st.floats(1e-9, 1).map(Budget.parse) | st.builds(
    Budget,
    st.integers(1, 10**6),
    st.sampled_from(["image", "total", "frame"]),
    st.booleans(),
    st.sampled_from(["proportional", "equal"]),
)
halves = st.builds(
    Half,
    text=st.text(max_size=8),
    pair=st.tuples(st.integers(), st.text(max_size=3)) | st.just(()),
    share=st.floats(allow_nan=False),
    flag=st.booleans(),
    nothing=st.none() | st.integers() | st.text(max_size=3),
)
steps = st.builds(Step, halves, keeps, st.sampled_from(CARD.stages)) | st.builds(
    Step, st.builds(Random, seed=st.integers(-5, 10**9)), keeps, st.just("connector")
)
plans = st.builds(
    Plan,
    st.lists(steps, min_size=1, max_size=4).map(lambda s: tuple(sorted(s, key=lambda step: step.stage))),
    st.sampled_from(["original", "contiguous"]),
)


@given(plans)
@example(Plan((Step(Half(text="\\", pair=("'", '"', "\\'")), Budget(1, "image"), "connector"),)))
def test_round_trips(tmp_path_factory, plan):
    everywhere(plan, tmp_path_factory.mktemp("plans") / "plan.json")


@given(st.text(max_size=10) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_values_read_as_they_were_written(value):
    back = read(write(value))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("3", 3), ("1e-3", 1e-3), ("mean", "mean"), ("'3'", "3"), ("(1, 2)", (1, 2))],
)
def test_values_as_people_write_them(text, value):
    assert read(text) == value


def test_method_text_is_plan_text():
    assert str(Norm()) == "norm" and str(Norm(largest=False)) == "norm:largest=False"
    assert str(Half(text="a,b", share=0.25)) == "half:text='a,b',share=0.25"
    assert Plan.of(str(Half("a > b, c=1", (3, "x"))), keep=1).steps[0].method == Half("a > b, c=1", (3, "x"))
    assert Plan.of("norm:largest=false", keep=5).steps[0].method == Norm(largest=False)


def test_stage_and_split_in_text():
    plan = Plan.of("half:keep=2048/total,split=equal,at=layers")
    assert plan.steps[0].stage == "layers" and plan.steps[0].keep == Budget(2048, "total", split="equal")
    assert str(plan) == "half:keep=2048/total,split=equal,at=layers"


def test_split_argument():
    plan = Plan.of("norm:keep=9/total > random:keep=5/total", split="equal")
    assert [s.keep.split for s in plan.steps] == ["equal", "equal"]
    with pytest.raises(KeepError, match="split 'fair'"):
        Plan.of("norm:keep=9/total", split="fair")


def test_positions():
    assert Plan.of("norm:keep=9").positions == "original"
    assert Plan.of("norm:keep=9", positions="contiguous").positions == "contiguous"
    assert Plan.of({"method": "norm", "keep": 9, "positions": "contiguous"}).positions == "contiguous"
    assert Plan.of(Plan.of("norm:keep=9", positions="contiguous")).positions == "contiguous"
    assert Plan.of(Plan.of("norm:keep=9", positions="contiguous"), positions="original").positions == "original"
    with pytest.raises(PlanError, match="positions='new'"):
        Plan.of("norm:keep=9", positions="new")


# --- recipes


def test_recipe_expands():
    expected = [Step(Random(seed=3), Budget(128, "image"), "connector"), Step(Norm(), Budget(64, "image"), "connector")]
    for plan in (
        Plan.of("twice:keep=64"),
        Plan.of("twice", keep=64),
        Plan.of(Twice, keep=64),
        Plan.of(Twice(), keep=64),
        Plan.of({"method": "twice", "keep": 64}),
    ):
        assert list(plan.steps) == expected
    assert Plan.of("twice:keep=64,seed=9").steps[0].method == Random(seed=9)
    assert len(Plan.of("stride:keep=50% > twice:keep=64").steps) == 3
    assert {s.keep.split for s in Plan.of("twice:keep=64/total", split="equal").steps} == {"equal"}


def test_recipe_survives_as_its_steps(tmp_path):
    everywhere(Plan.of("twice:keep=64"), tmp_path / "plan.json")


def test_recipe_errors():
    with pytest.raises(PlanError, match="no budget for twice"):
        Plan.of("twice")
    with pytest.raises(PlanError, match="twice is a recipe"):
        Plan.of("twice:keep=64,at=connector")
    with pytest.raises(PlanError, match="every step has its own"):
        Plan.of("twice:keep=64", keep=64)


# --- errors


@pytest.mark.parametrize(
    ("plan", "keep", "message", "hint"),
    [
        ("divprun:keep=64", None, "no method named 'divprun'", "divprune"),
        ("visionzip:keep=64,contextal=0.2", None, "no option 'contextal'", "keep, at, split, contextual"),
        ("divprune", None, "no budget for divprune", "keep=0.25"),
        ("divprune > norm", 64, "no budget for divprune, norm", "keep=0.25"),
        ("divprune:keep=64", 64, "every step has its own", "leave one of them out"),
        ("divprune:keep=64,keep=32", None, "'keep' stands twice", "leave one of them out"),
        ("divprune:keep=64 > resize:keep=32", None, "stages run connector, input", "input > encoder > connector"),
        ("divprune:keep=64,at=layers", None, "does not run at stage 'layers'", "at=connector"),
        ("divprune:64", None, "'64' in plan 'divprune:64'", "name=value"),
        ("norm:split=equal", 64, "a split but no budget", "keep=2048/total,split=equal"),
        ("", 64, "no method named ''", "foveate methods"),
        ("norm:keep=64 >", None, "no method named ''", "foveate methods"),
        ("random:seed=abc", 64, "seed='abc' is not of type int", ""),
        ("random:seed=1.5", 64, "seed=1.5 is not of type int", ""),
        ("random:seed=true", 64, "seed=True is not of type int", ""),
        ("norm:largest=1", 64, "largest=1 is not of type bool", ""),
        ("visionzip:contextual=many", 64, "contextual='many' is not of type float", ""),
        ("visionzip:contextual=7", 64, "visionzip refuses its options {'contextual': 7}", ""),
        ({"method": "norm", "kep": 64}, None, "a step is", '"method": "divprune"'),
        ({"keep": 64}, None, "a step is", '"method": "divprune"'),
        ({"steps": [{"method": "norm", "keep": 64}], "position": "contiguous"}, None, "a plan has no position", "steps, positions"),
        ({"steps": []}, None, "at least one step", "divprune:keep=0.25"),
        ([], None, "at least one step", "divprune:keep=0.25"),
        (3, 64, "3 is not a plan", "divprune:keep=0.25"),
        ([None], 64, "None is not a plan", "divprune:keep=0.25"),
    ],
)  # fmt: skip
def test_errors(plan, keep, message, hint):
    with pytest.raises(PlanError) as caught:
        Plan.of(plan, keep=keep)
    assert message in caught.value.what and hint in caught.value.hint


@pytest.mark.parametrize(
    "text", ["norm:keep=0", "norm:keep=9.0", "norm:keep=1/2", "norm:keep=True", "norm:keep=64/picture"]
)
def test_budget_errors(text):
    with pytest.raises(KeepError, match="is not a budget"):
        Plan.of(text)


def test_files_that_are_no_plans(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("divprune:keep=64")
    with pytest.raises(PlanError, match=r"is not JSON.*\n.*Plan.save"):
        Plan.load(path)
    path.write_text("64")
    with pytest.raises(PlanError, match="64 is not a plan"):
        Plan.load(path)


def test_describe_shows_the_order():
    lines = Plan.of("resize:keep=50% > norm:keep=64", positions="contiguous").describe().splitlines()
    assert [word for line in lines for word in ("image", "input", "connector", "language") if word in line.split()] == [
        "image", "input", "connector", "language",
    ]  # fmt: skip
    assert "contiguous" in lines[-1] and "50%" in lines[1] and "64/image" in lines[2]
