"""What a step says of the tokens that it left reaches later steps and the report, on every family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import pytest
import torch
import views
from reference import MIXED, batch_of, logits_of, model_of
from test_methods import METHODS
from torch import Tensor

import foveate
import tiny
from foveate import MethodError
from foveate.budget import Budget
from foveate.method import Card, Method, ScoreMethod
from foveate.plan import Step
from foveate.stages import connector
from foveate.tokens import Reduction, View

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
MARKING = {name: cls() for name, cls in METHODS.items() if cls().marked_by is not None}


@dataclass(frozen=True)
class Numbers(Method):
    """Drops by place, and marks what is left with its place in the picture."""

    card = Card(name="numbers", title="probe: marks")
    answer: object = None

    @property
    def marked_by(self) -> tuple[str, ...] | None:
        return ()

    def mark(self, view: View) -> Mapping[str, Tensor]:
        return {"number": view.row * 1000 + view.col if self.answer is None else self.answer}

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(torch.arange(view.k) * view.n // view.k, view.n)


@dataclass(frozen=True)
class Spares(ScoreMethod):
    """What a later stage has to do: key tokens stay, of the others the last."""

    card = Card(name="spares", title="probe: looks at marks")
    seen: list[View] = field(default_factory=list, compare=False)

    def score(self, view: View) -> Tensor:
        self.seen.append(view)
        return view.marks["key"] * 2 * view.n + torch.arange(view.n)


@every_family
def test_key_tokens_survive_a_later_step(name):
    """Several images in a padded batch; the report says which they are, also after a step that marks nothing."""
    model, batch, later = model_of(name), batch_of(name), Spares()
    with foveate.compress(model, ["mustdrop_merge:keep=0.5,key=0.2", later], keep=0.5) as run:
        logits_of(model, batch)
    assert len(later.seen) == len(run.report.images) == 3
    for view, image in zip(later.seen, run.report.images, strict=True):
        key = view.marks["key"]
        assert key.shape == (view.n,) and int(key.sum()) == ceil(0.2 * view.n - 1e-9) <= view.k
        assert image.marks["key"].shape == (image.tokens_out,)
        assert int(image.marks["key"].sum()) == int(key.sum()), "all are still there"
    assert run.report.to_dict()["images"][0]["marks"]["key"] == run.report.images[0].marks["key"].tolist()


@every_family
def test_the_last_step_marks_too(name):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, "mustdrop_merge:key=0.2", keep=0.5) as run:
        logits_of(model, batch)
    for image in run.report.images:
        assert int(image.marks["key"].sum()) == ceil(0.2 * image.tokens_out - 1e-9)
    with foveate.compress(model, "mustdrop_merge:key=0", keep=0.5) as run:
        logits_of(model, batch)
    assert not any(image.marks for image in run.report.images)


def test_key_tokens_are_those_with_most_attention():
    """FasterVLM after the same merging keeps as many by the same attention."""
    model, batch = model_of("llava"), batch_of("llava")
    kept = []
    for plan in ("mustdrop_merge:keep=20,key=0.25", "mustdrop_merge:keep=20,key=0 > fastervlm:keep=5"):
        with foveate.compress(model, plan) as run:
            logits_of(model, batch)
        kept.append([image.kept[image.marks["key"]] if image.marks else image.kept for image in run.report.images])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*kept, strict=True))
    assert len(kept[0]) == 3 and len(kept[0][0]) == 5


def test_a_picture_that_loses_nothing_is_marked_too():
    """36 tokens to 36: a budget that happens to be as large, which is not keep=1.0."""
    model, batch = model_of("llava"), batch_of("llava")
    for keep, number in ((36, 3), (1.0, None)):
        with foveate.compress(model, "mustdrop_merge", keep=keep) as run:
            logits_of(model, batch)
        for image in run.report.images:
            assert image.tokens_out == 36 and not image.tower
            assert (int(image.marks["key"].sum()) if image.marks else None) == number


@every_family
@pytest.mark.parametrize("later", ["stride", "tome"])
def test_marks_follow_the_anchors(name, later):
    """Through dropping and merging, structure tokens in between."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, [Numbers(), f"{later}:keep=0.6"], keep=0.7) as run:
        logits_of(model, batch)
    for image in run.report.images:
        content = image.kept[image.kind[image.kept] == 0]
        assert image.marks["number"].tolist() == (image.row[content] * 1000 + image.col[content]).tolist()


def test_one_more_step_may_say_it_anew():
    model, batch, first = model_of("llava"), batch_of("llava", MIXED[:1]), Step(Numbers(), Budget.parse(9), "connector")
    with foveate.compress(model, [first, Numbers(torch.arange(4))], keep=4) as run:
        logits_of(model, batch)
    assert run.report.images[0].marks["number"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("answer", "says"), [(torch.zeros(2), r"'number' is \(2,\)"), (3, "is int")])
def test_a_wrong_mark_is_named(answer, says):
    model, batch = model_of("llava"), batch_of("llava", MIXED[:1])
    with foveate.compress(model, Numbers(answer), keep=4), pytest.raises(MethodError, match=says):
        logits_of(model, batch)


def test_without_marks_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(connector, "_mark", lambda *_: pytest.fail("asked"))
    model, batch = model_of("llava"), batch_of("llava")
    with foveate.compress(model, "mustdrop_merge:keep=12,key=0 > norm:keep=4") as run:
        logits_of(model, batch)
    assert all(image.tokens_out == 4 and not image.marks for image in run.report.images)


# -- methods by themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKING)
@pytest.mark.parametrize("shape", views.SHAPES)
def test_marks_are_values_of_tokens(name, shape):
    """From the extras that it names and no others; the same twice; inputs unchanged; NaN refused; half precision."""
    method, full = MARKING[name], views.view(shape)
    lean = View(full.x, full.n, extras={one: full.extras[one] for one in method.marked_by or ()})
    marks = method.mark(lean)
    assert marks and all(mark.shape == (full.n,) for mark in marks.values())
    assert all(torch.equal(mark, method.mark(full)[key]) for key, mark in marks.items())
    for fact, before in views.facts(views.view(shape)).items():
        assert torch.equal(views.facts(full)[fact], before), f"{name} wrote into {fact}"
    for one in method.marked_by or ():
        with pytest.raises(MethodError, match="NaN"):
            method.mark(views.over(full, **{one: torch.full_like(full.extras[one].value, torch.nan)}))
        with pytest.raises(MethodError, match="needs"):
            method.mark(View(full.x, full.n))
    assert set(method.mark(views.view(shape, dtype=torch.bfloat16))) == set(marks)
