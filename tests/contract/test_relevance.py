"""A judge of one's own for methods that look at the question."""

import pytest
import torch

import tiny
from foveate import MethodError, compress

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
