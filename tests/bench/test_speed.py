"""The speed benchmark runs and reports what it should. No number of seconds is tested: timing belongs to benchmarks."""

import json

import pytest
import torch

from foveate.bench.runner import Entry, encoded
from foveate.bench.times.speed import Shape, _job, _prompt, build, calls, measure_speed
from foveate.errors import UnsupportedError
from foveate.plan import Plan


@pytest.fixture(scope="module")
def result():
    ticks = []
    shape = Shape(layers=2, width=64, heads=2, kv_heads=1, vocab=64)
    found = measure_speed(
        shape=shape,
        tokens=(576, 1152),
        text=8,
        keeps=(0.25,),
        methods=("norm", "fastervlm"),
        repeats=2,
        tick=ticks.append,
    )
    assert len(ticks) == calls((576, 1152), (0.25,), ("norm", "fastervlm"), 2)
    return found


def test_every_size_and_method_is_there(result):
    assert [row["tokens"] for row in result["overhead"]] == [576, 1152]
    assert [(r["tokens"], r["method"]) for r in result["prefill"]] == [
        (n, m) for n in (576, 1152) for m in ("norm", "fastervlm")
    ]


def test_rows_hold_ratios(result):
    for row in result["overhead"]:
        assert row["ratio"] > 0 and row["control"] > 0 and row["hooks_of_stock"] > 0
        assert -1 < row["added_of_stock"] < 1, "a part of a prefill"
    for row in result["prefill"]:
        assert row["choosing_of_stock"] > 0 and row["hooks_of_stock"] > 0
        low, high = row["efficiency_quartiles"]
        assert low <= row["efficiency"] <= high


def test_result_is_one_line_of_json(result):
    line = json.dumps(result)
    assert "\n" not in line and json.loads(line)["bench"] == "speed"
    assert result["environment"]["device"] == "cpu"


def test_tokens_must_be_whole_pictures():
    with pytest.raises(ValueError, match="576"):
        measure_speed(shape=Shape(1, 64, 2, 1, 64), tokens=(100,), repeats=1)


def test_nothing_of_a_run_reaches_the_language_model_at_keep_one():
    """Why ``added`` is all that a run costs: beyond the hooks, both calls do the same work on the same arguments."""
    model = build(Shape(1, 64, 2, 1, 64))
    fed = _prompt(model, 1, 576, 8)
    plan = Plan.of("norm", 1.0)
    features = encoded(model, fed | {"pixel_values": torch.zeros(1, 3, 96, 96)}, [Entry("all", plan)])
    seen = []
    model.get_decoder().register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    for job in (_job(model, fed, features), _job(model, fed, features, plan)):
        with job() as work:
            work()
    stock, attached = seen
    assert stock.keys() == attached.keys()
    for name, value in stock.items():
        mine = attached[name]
        same = torch.equal(value, mine) and value.stride() == mine.stride() if torch.is_tensor(value) else value == mine
        assert same, name


@pytest.mark.parametrize("method", ["resize", "tome_tower"])
def test_what_works_in_the_tower_is_refused(method):
    with pytest.raises(UnsupportedError, match=f"{method} works before or inside the vision tower"):
        measure_speed(shape=Shape(1, 64, 2, 1, 64), tokens=(576,), methods=("norm", method), repeats=1)


def test_methods_inside_are_held_against_layers_of_their_lengths():
    small = Shape(layers=4, width=64, heads=2, kv_heads=1, vocab=64)
    result = measure_speed(shape=small, tokens=(576,), text=8, keeps=(0.25,), methods=("fastv", "stride"), repeats=1)
    inside, before = sorted(result["prefill"], key=lambda row: row["method"])
    assert inside["layers"] == [584, 584, 152, 152] and "ideal_of_stock" in inside and "oracle_of_stock" in before
    assert inside["efficiency"] == pytest.approx(inside["seconds"]["ideal"] / inside["seconds"]["compressed"], rel=1e-6)
