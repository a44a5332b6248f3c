"""Equal arithmetic and equal bytes: the search for keep, what is counted and measured, and the page."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import tiny
from bench import stub
from foveate import compress, registry
from foveate.bench import inside
from foveate.bench.flops import count
from foveate.bench.runner import prefill
from foveate.cli import app
from foveate.errors import UnsupportedError
from foveate.plan import Plan
from foveate.stages.evict import bytes_of

METHODS = ("fastv", "vtw", "ima", "snapkv", "lookm", "mustdrop_decode")


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    return stub.task(model)


@pytest.fixture(scope="module")
def coarse():
    """Searches that end sooner: one of 36 tokens is more than a fiftieth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside, "FINEST", 50)
        yield


@pytest.fixture(scope="module")
def result(model, task, coarse):
    options = {"shares": (0.8, 0.6), "sizes": (0.5,), "prompts": 1, "repeats": 1, "batch": 3}
    return inside.measure_inside(model, stub.Processor(), methods=METHODS, task=task, **options)


def test_keep_comes_nearest_on_a_slope_and_on_steps(monkeypatch):
    monkeypatch.setattr(inside, "FINEST", 1000)
    asked = []

    def slope(keep):
        asked.append(keep)
        return 0.2 + 0.8 * keep

    known: dict[int, float] = {}
    assert inside.nearest(slope, 0.6, known) == pytest.approx(0.5, abs=0.001)
    many = len(asked)
    assert inside.nearest(slope, 0.6, known) == pytest.approx(0.5, abs=0.001) and len(asked) == many, "nothing twice"
    assert inside.nearest(slope, 0.1, {}) == 0.001 and inside.nearest(slope, 1.2, {}) == 0.999, "out of reach"
    steps = {0.3: 0.25, 0.4: 0.5}
    for target, value in steps.items():
        keep = inside.nearest(lambda k: round(4 * k) / 4, target, {})
        assert round(4 * keep) / 4 == value


def test_every_method_of_the_layers_and_the_cache_is_found():
    found = {kind: inside.names_of_kind(kind) for kind in ("layers", "cache")}
    for name, cls in registry.classes().items():
        assert [kind for kind in found if name in found[kind]] == [k for k in found if cls.card.stages == (k,)]
    assert inside.names_of_kind("cache", ["fastv", "h2o"]) == ["h2o"]


def test_rows_stand_at_their_targets(result, model, task):
    first, *rows = result["rows"]
    assert first["method"] == "uncompressed" and first["prefill_seconds"] > 0 and first["decode_milliseconds"] > 0
    by = {(row["method"], row["target"]): row for row in rows}
    both = {(name, target) for name in (*inside.BEFORE, "fastv", "vtw") for target in (0.8, 0.6)}
    assert set(by) == both | {("ima", None), ("mustdrop_decode", None), ("snapkv", 0.5), ("lookm", 0.5)}
    one_token = 1 / 36
    for target in (0.8, 0.6):
        assert by["fastv", target]["layers_share"] == pytest.approx(target, abs=one_token)
        assert by["random", target]["layers_share"] == pytest.approx(target, abs=one_token)
        assert by["random", target]["keep"] > by["fastv", target]["keep"], "what leaves later must leave more"
    assert by["snapkv", 0.5]["cache_share"] == pytest.approx(0.5, abs=one_token)
    assert by["ima", None]["keep"] is None and by["ima", None]["cache_share"] == 1
    assert by["snapkv", 0.5]["layers_share"] >= 1, "the prompt runs as ever, and scores come on top"
    row = by["fastv", 0.6]
    prompts = [stub.Processor()([s]) for s in inside._spread(task, result["prompts"])]
    found = [count(model, fed, row["plan"]) for fed in prompts]
    mine = sum(sum(f.layers) + f.method for f in found)
    assert row["layers_share"] == mine / sum(sum(f.stock.layers) for f in found)
    assert row["prefill_share"] == sum(f.prefill for f in found) / sum(f.stock.prefill for f in found)


def test_accuracy_is_that_of_plain_generation(result, model, task):
    for row in result["rows"]:
        if row["method"] in ("uncompressed", "vtw", "snapkv"):
            right = []
            for sample in task.samples:
                fed = stub.Processor()([sample])
                with torch.no_grad():
                    if row["plan"]:
                        with compress(model, row["plan"]):
                            out = model.generate(**fed, max_new_tokens=10, do_sample=False)
                    else:
                        out = model.generate(**fed, max_new_tokens=10, do_sample=False)
                said = stub.Processor().batch_decode(out[:, fed["input_ids"].shape[1] :])[0]
                right.append(task.correct(said, sample))
            assert row["right"] == sum(right) and row["n"] == len(task.samples)
        assert row["worst"] in row["slices"] and row["low"] <= row["accuracy"] <= row["high"]


@pytest.mark.parametrize("name", ["snapkv", "fastv"])
def test_bytes_are_those_of_the_cache_that_is_returned(name, model, task):
    fed = stub.Processor()([task.samples[0]])
    gauge = inside.Gauge(model, stub.Processor(), [fed])
    plan = Plan.of(name, 0.25)
    with compress(model, plan) as run:
        held = bytes_of(prefill(model, fed).past_key_values)
    assert gauge.cache(plan) == held / gauge.full < 1
    if name == "snapkv":
        assert run.report.cache_bytes == (gauge.full, held)


def test_what_cannot_be_counted_is_a_row_that_says_so(model, task, monkeypatch):
    def refuse(self, plan):
        if "fastv" in str(plan):
            raise UnsupportedError("no such layer")
        return 0.5, 0.5

    monkeypatch.setattr(inside.Gauge, "arithmetic", refuse)
    result = inside.measure_inside(
        model, stub.Processor(), shares=(0.5,), methods=["fastv"], repeats=1, task=task, samples=1
    )
    row = result["rows"][-1]
    assert row["error"] == "no such layer" and "accuracy" not in row
    assert "`fastv` is not measured: no such layer." in inside.markdown(result)


def test_methods_elsewhere_are_refused(model):
    with pytest.raises(UnsupportedError, match="divprune works elsewhere"):
        inside.measure_inside(model, stub.Processor(), methods=["divprune"])


def test_the_page_has_two_tables(result):
    assert json.loads(json.dumps(result))["rows"] == result["rows"]
    arithmetic, cache = inside.markdown(result).split("Equal bytes")
    assert "| 0.8 | fastv | between layers |" in arithmetic and "| default | ima |" in arithmetic
    assert "| 0.5 | snapkv |" in cache and "snapkv" not in arithmetic and "fastv" not in cache
    widths = {line.count("|") for line in arithmetic.splitlines() if line.startswith("|")}
    assert len(widths) == 1, "every line has every cell"


def test_ratios_that_vary_are_marked():
    row = {"decode": 0.5, "decode_quartiles": [0.48, 0.52], "prefill": 0.5, "prefill_quartiles": [0.47, 0.53]}
    assert [inside._ratio(row, name) for name in ("decode", "prefill")] == ["0.500", "~0.500"]
    assert inside._ratio({"cache_share": 0.25}, "cache_share") == "0.250"


def test_the_command_writes_page_and_numbers(model, task, coarse, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["foveate.cli.bench"], "load_testbed", lambda *a: (model, stub.Processor()))
    monkeypatch.setattr(inside, "testbed_task", lambda *a, **k: task)
    page, numbers = tmp_path / "inside.md", tmp_path / "results" / "inside.json"
    page.write_text(f"# Title\n{inside.START}\nold\n{inside.END}\nrest\n")
    words = ["--write", page, "--results", numbers, "--methods", "vtw,h2o", "--shares", "0.5", "--sizes", "0.5"]
    done = CliRunner().invoke(app, ["bench", "inside", "--repeats", "1", *map(str, words)])
    assert done.exit_code == 0, done.output
    text, result = page.read_text(), json.loads(numbers.read_text())
    assert "\nold\n" not in text and "| h2o |" in text and text.endswith(f"{inside.END}\nrest\n")
    assert result["command"].startswith("foveate bench inside") and "--repeats 1" in result["command"]
    assert "--samples" not in result["command"], "only what differs from the defaults"
