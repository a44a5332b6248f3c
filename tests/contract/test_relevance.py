"""A judge of one's own for methods that look at the question."""

from dataclasses import dataclass

import pytest
import torch

import tiny
from foveate import MethodError, compress
from foveate.budget import Budget
from foveate.method import Card, Method
from foveate.plan import Step
from foveate.tokens import Reduction, View

PROMPT = [3, ("image", "a"), 5]
MARKED = [1, 4, 7]


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def called(request):
    model = tiny.build(request.param)
    return model, tiny.inputs(request.param, model, [PROMPT])


def kept(model, inputs, relevance, plan="trim", **more):
    with compress(model, plan, keep=4, relevance=relevance, **more) as run, torch.inference_mode():
        model(**inputs)
    return run.report.images[0].kept.tolist()


def test_the_judge_decides(called):
    model, inputs = called
    seen = []

    def judge(features, ids):
        seen.append((features.shape, ids.tolist()))
        return torch.zeros(len(features)).index_fill(0, torch.tensor(MARKED), 1.0)

    plain = kept(model, inputs, None)
    assert set(MARKED) < set(kept(model, inputs, judge)), "and one token for the rest"
    assert not set(MARKED) < set(plain)
    ((shape, ids),) = seen
    assert len(shape) == 2 and ids == inputs["input_ids"][0, -5:].tolist()
    assert kept(model, inputs, None) == plain, "nothing of it stays"


def test_it_sees_features_before_the_connector():
    model = tiny.build("llava")
    widths = []

    def judge(features, ids):
        widths.append(features.shape[1])
        return features[:, 0]

    kept(model, tiny.inputs("llava", model, [PROMPT]), judge)
    assert widths == [model.config.vision_config.hidden_size]


def test_it_is_not_asked_where_no_method_looks_at_the_question(called):
    model, inputs = called
    kept(model, inputs, lambda *_: pytest.fail("asked"), plan="norm")


def test_it_follows_earlier_steps(called):
    model, inputs = called
    with compress(model, "stride:keep=5 > trim:keep=2", relevance=lambda x, _: torch.arange(len(x))) as run:
        model(**inputs)
    (image,) = run.report.images
    assert [stage[2] for stage in image.stages] == [5, 2]


def test_it_is_asked_once_for_each_picture(called):
    """Two steps look at the question; what is left after the first keeps what was said of it."""
    model, inputs = called
    asked = []

    def judge(features, ids):
        asked.append(len(features))
        return torch.zeros(len(features)).index_fill(0, torch.tensor(MARKED), 1.0)

    with compress(model, "trim:keep=9 > trim:keep=4", relevance=judge) as run:
        model(**inputs)
        model(**inputs)
    tokens = run.report.images[0].tokens_in
    assert asked == [tokens, tokens], "once for each of two calls"
    assert set(MARKED) < set(run.report.images[0].kept.tolist()), "and one token for the rest"


def test_what_was_merged_has_the_mean(called):
    """Of tokens that feed a slot, whatever their weights."""

    @dataclass(frozen=True)
    class Pairs(Method):
        card = Card(name="pairs", title="probe", needs=("question",), guidance="question")

        def __call__(self, view: View) -> Reduction:
            seen.append(view.extras["relevance"].value.tolist())
            src = torch.arange(2 * view.k)
            return Reduction(view.n, src, src // 2, torch.full((2 * view.k,), 3.0), src[::2])

    model, inputs = called
    seen = []
    steps = [Step(Pairs(), Budget.parse(k), "connector") for k in (4, 2)]
    with compress(model, steps, relevance=lambda x, _: torch.arange(len(x)).square()):
        model(**inputs)
    first, second = seen
    assert first == [i * i for i in range(len(first))] and second == [0.5, 6.5, 20.5, 42.5]


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (lambda x, ids: torch.zeros(2), r"gave \(2,\)"),
        (lambda x, ids: 3, "gave int"),
        (lambda x, ids: torch.full((len(x),), torch.nan), "NaN"),
    ],
)
def test_a_wrong_answer_is_named(called, judge, words):
    model, inputs = called
    with pytest.raises(MethodError, match=words):
        kept(model, inputs, judge)
