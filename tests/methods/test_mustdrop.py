import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("keep=0.25", "mustdrop_merge:keep=50% > mustdrop_filter:keep=50% > mustdrop_decode"),
        ("keep=64", "mustdrop_merge:keep=128/image > mustdrop_filter:keep=64/image > mustdrop_decode"),
        (
            "keep='=64/image',decode=False",
            "mustdrop_merge:keep=128/image > mustdrop_filter:keep==64/image",
        ),
        ("keep='=64/image',merge=False", "mustdrop_filter:keep==64/image > mustdrop_decode"),
        ("keep=0.25,merge=False", "mustdrop_filter:keep=25% > mustdrop_decode"),
        ("keep='4/frame',merge=False", "mustdrop_filter:keep=4/frame > mustdrop_decode"),
        ("keep=0.25,filter=False", "mustdrop_merge:keep=25%"),
    ],
)
def test_each_stage_has_its_share_and_a_switch(options, steps):
    plan = Plan.of(f"mustdrop:{options}")
    assert str(plan) == steps
    assert [step.stage for step in plan.steps] == [
        {"merge": "encoder", "filter": "layers", "decode": "cache"}[step.method.name.split("_")[1]]
        for step in plan.steps
    ]


def test_some_stage_is_on_and_a_budget_is_named():
    with pytest.raises(PlanError, match="leave no stage"):
        Plan.of("mustdrop:keep=0.25,merge=False,filter=False")
    with pytest.raises(PlanError, match="no budget for mustdrop"):
        Plan.of("mustdrop")


@pytest.mark.parametrize("k", range(1, 577, 25))
def test_a_share_is_met_to_a_token(k):
    n = 576
    for step in Plan.of("mustdrop:decode=False", keep=k / 576).steps:
        (n,) = step.keep.counts([n])
    assert abs(n - k) <= 1


@pytest.mark.parametrize(
    ("options", "entering", "left"), [("", 18, 9), (",merge=False", 36, 9), (",filter=False", 9, 9)]
)
def test_stages_switch_on_and_off(options, entering, left):
    """The `works` sentence, its first two stages: each on or off, and key tokens of the tower survive the filter."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    for keep in ("0.25", "9"):
        with torch.no_grad(), compress(model, f"mustdrop:keep={keep}{options}") as run:
            model(**batch)
        (image,) = run.report.images
        assert len(image.kept) == entering and image.tokens_out == len(image.survivors) == left
        assert bool(image.tower) == ("merge" not in options) and bool(image.layers) == ("filter" not in options)
        if "merge" not in options:
            key = image.kept[image.marks["key"]].tolist()
            assert key and set(key) <= set(image.survivors.tolist())


@pytest.mark.parametrize("decode", [True, False])
def test_the_cache_shrinks_to_the_survivors(decode):
    """The `works` sentence, its third stage."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    with torch.no_grad(), compress(model, f"mustdrop:keep=4,merge=False,decode={decode}") as run:
        out = model(**batch)
        report = run.report
    held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    least = int((batch["input_ids"] != model.config.image_token_id).sum()) + 4
    assert held[-1] == least < held[0] == batch["input_ids"].shape[1]
    assert (set(held) == {held[0], least}) is decode and bool(report.cache) is decode
    if decode:
        before, after = report.cache_bytes
        assert after < before
