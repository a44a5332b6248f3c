"""The speed benchmark runs and reports what it should. No number of seconds is tested: timing belongs to benchmarks."""

import json

import pytest

from foveate.bench.speed import Shape, calls, measure_speed
from foveate.bench.timing import Times


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
        assert row["ratio"] > 0 and row["hooks_of_stock"] > 0
    for row in result["prefill"]:
        assert row["efficiency"] == pytest.approx(row["oracle_of_stock"] / row["of_stock"])
        assert row["choosing_of_stock"] > 0 and row["hooks_of_stock"] > 0
        low, high = row["efficiency_quartiles"]
        assert low <= high


def test_result_is_one_line_of_json(result):
    line = json.dumps(result)
    assert "\n" not in line and json.loads(line)["bench"] == "speed"
    assert result["environment"]["device"] == "cpu"


def test_tokens_must_be_whole_pictures():
    with pytest.raises(ValueError, match="576"):
        measure_speed(shape=Shape(1, 64, 2, 1, 64), tokens=(100,), repeats=1)


def test_ratios_and_spread():
    one, other = Times([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]), Times([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert one.over(other) == 2.0 and one.over(other, "cpu") == 0.5
    assert one.spread(other) == (2.0, 2.0)
