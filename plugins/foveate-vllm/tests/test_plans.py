"""What vLLM can run, and why not the rest. Needs no vLLM."""

import pytest

from foveate import FoveateError, Plan, UnsupportedError
from foveate_vllm.__main__ import verdicts
from foveate_vllm.checkpoint import renamed
from foveate_vllm.compressor import groups
from foveate_vllm.plans import check, digest, left, plan_of


class Config:
    def __init__(self, foveate=None, foveate_positions=None, model_type="llava"):
        self.foveate, self.foveate_positions, self.model_type = foveate, foveate_positions, model_type


REFUSED = [
    ("resize:keep=0.25", "stage 'input'"),
    ("tome_tower:keep=0.25", "stage 'encoder'"),
    ("fastv:layer=2,keep=0.5", "stage 'layers'"),
    ("divprune:keep=0.5 > fastv:layer=2,keep=0.5", "stage 'layers'"),
    ("vtw:layer=0.5", "stage 'layers'"),
    ("snapkv:keep=64", "stage 'cache'"),
    ("cdpruner:keep=0.25", "looks at the question"),
    ("dart:keep=0.25", "looks at the question"),
    ("pool:keep=0.25", "decides how many"),
    ("prumerge:keep=64,adaptive=true", "decides how many"),
    ("embedlens:keep=0.25", "needs vocabulary"),
    ("divprune:keep=300/total", "over the pictures of a prompt"),
]


@pytest.mark.parametrize(("plan", "says"), REFUSED)
@pytest.mark.parametrize("model_type", ["llava", "llava_onevision", "qwen2_5_vl"])
def test_what_cannot_be_right_is_refused(plan, says, model_type):
    with pytest.raises(UnsupportedError, match=says) as caught:
        check(plan_of(Config(plan, model_type=model_type)), model_type)
    assert caught.value.hint and ("embed_images" in caught.value.hint) <= (model_type == "llava")


@pytest.mark.parametrize(
    ("model_type", "positions", "fits"),
    [
        ("llava", None, True),
        ("llava", "contiguous", True),
        ("llava", "original", False),
        ("llava", "preserved", False),
        ("llava_onevision", None, True),
        ("llava_onevision", "original", False),
        ("qwen2_5_vl", None, True),
        ("qwen2_5_vl", "original", True),
        ("qwen2_5_vl", "contiguous", True),
        ("qwen2_5_vl", "preserved", False),
    ],
)
def test_positions_that_vllm_does_not_count_are_refused(model_type, positions, fits):
    plan = plan_of(Config("divprune:keep=0.5", positions, model_type))
    if fits:
        check(plan, model_type)
    else:
        with pytest.raises(UnsupportedError, match="positions="):
            check(plan, model_type)


def test_every_method_runs_or_says_why_not():
    found = verdicts()
    runs = {name for name, reason in found.items() if not reason}
    assert {"divprune", "visionzip", "fastervlm", "hiprune", "random", "norm"} <= runs
    assert not {"fastv", "cdpruner", "resize", "snapkv", "pool"} & runs


def test_a_model_that_is_not_served_is_refused():
    with pytest.raises(UnsupportedError, match="'llava_next' is not among") as caught:
        check(plan_of(Config("divprune:keep=0.5", model_type="llava_next")), "llava_next")
    assert "llava, llava_onevision, qwen2_5_vl" in caught.value.hint


def test_a_plan_may_be_text_json_or_a_mapping():
    plan = Plan.of("visionzip:keep=64,contextual=0.2")
    for given in (str(plan), plan.to_dict()["steps"][0] | {"positions": "contiguous"}):
        assert str(plan_of(Config(given))) == str(plan)
    import json

    assert str(plan_of(Config(json.dumps({"steps": plan.to_dict()["steps"]})))) == str(plan)
    assert plan_of(Config()) is None and plan_of(object()) is None
    with pytest.raises(FoveateError, match="no method"):
        plan_of(Config("nosuch:keep=0.5"))
    with pytest.raises(FoveateError, match="is not JSON"):
        plan_of(Config("{divprune"))


def test_counts_follow_the_budget():
    assert left(Plan.of("divprune:keep=0.25"), 576) == 144
    assert left(Plan.of("random:keep=0.5 > divprune:keep=60"), 576) == 60
    assert left(Plan.of("divprune:keep=600"), 576) == 576


def test_two_plans_have_two_names():
    plans = ["divprune:keep=0.25", "divprune:keep=0.5", "random:keep=0.25", "random:keep=0.25,seed=1"]
    assert len({digest(Plan.of(p, positions=x)) for p in plans for x in ("original", "contiguous")}) == 8


def test_groups_stay_within_a_limit():
    assert groups([5, 5, 5, 20, 1], 11) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert groups([], 5) == [] and groups([9], 5) == [slice(0, 1)]


def test_names_of_tensors():
    assert renamed("vision_tower.embeddings.x") == "vision_tower.vision_model.embeddings.x"
    assert renamed("model.vision_tower.encoder.x") == "model.vision_tower.vision_model.encoder.x"
    for name in ("vision_tower.vision_model.embeddings.x", "language_model.model.norm.weight"):
        assert renamed(name) == name
