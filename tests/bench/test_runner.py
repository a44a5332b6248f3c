"""The runner on a tiny random model: counts, sharing of encodings, refusals, times."""

import json

import pytest
import torch

import tiny
from bench import stub
from foveate.attach import compress
from foveate.bench import table
from foveate.bench.demo import demo, steps
from foveate.bench.page import page
from foveate.bench.runner import STOCK, encoded, grid, measure, prepared
from foveate.errors import UnsupportedError


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    return stub.task(model)


@pytest.fixture(scope="module")
def result(model, task):
    ticks = []
    entries = grid(["random", "norm"], [9, 36])
    found = measure(
        model, stub.Processor(), task, entries, batch=4, max_new_tokens=3, repeats=2, time_batch=2, tick=ticks.append
    )
    assert (ticks.count("answers"), ticks.count("times")) == (2 * 5, 2 * 5 * 3)
    return found


def test_rows_count_and_add_up(result, task):
    assert [row["label"] for row in result["rows"]][:2] == [STOCK, "random:keep=9/image"]
    for row in result["rows"]:
        assert row["n"] == len(task.samples) == sum(one["n"] for one in row["slices"].values())
        assert row["right"] == sum(one["right"] for one in row["slices"].values())
        assert row["low"] <= row["accuracy"] <= row["high"]


def test_the_stock_model_gets_its_own_answers_right(result, task):
    stock = result["rows"][0]
    assert stock["right"] >= len(task.samples) // 2
    assert stock["tokens_per_image"] == 36


def test_budgets_are_kept_and_a_full_budget_changes_nothing(result):
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["norm:keep=9/image"]["tokens_per_image"] == 9
    assert rows["norm:keep=36/image"]["same_answer"] == 1.0
    assert rows["norm:keep=36/image"]["against_uncompressed"]["difference"] == 0.0


def test_times_are_ratios_to_the_stock_model(result):
    assert result["rows"][0]["time"] == {"prefill": 1.0, "choosing": 0.0, "first_token": 1.0}
    for row in result["rows"][1:]:
        assert set(row["time"]) == {"prefill", "choosing", "first_token"}
        assert all(value > 0 for value in row["time"].values())


def test_a_result_is_plain_data_with_its_environment(result):
    again = json.loads(json.dumps(result))
    assert again["task"] == "stub" and again["note"] == "a stub"
    assert {"foveate", "torch", "transformers", "threads", "dtype"} <= set(again["environment"])


def test_shared_encodings_give_the_answers_of_plain_runs(model, task):
    """Every picture is encoded once for all plans; each plan answers as if it had encoded it itself."""
    processor, entries = stub.Processor(), grid(["fastervlm", "visionzip", "norm"], [9])
    said = measure(model, processor, task, entries, batch=3, max_new_tokens=3)["answers"]
    for entry in entries[1:]:
        for i, sample in enumerate(task.samples):
            batch = processor([sample])
            with compress(model, entry.plan), torch.no_grad():
                out = model.generate(**batch, max_new_tokens=3, do_sample=False)
            assert processor.batch_decode(out[:, batch["input_ids"].shape[1] :])[0] == said[entry.label][i]


def test_encoding_leaves_the_model_as_it_was(model, task):
    fed = prepared(model, task.inputs(stub.Processor(), task.samples[:2]))
    encoded(model, fed, grid(["fastervlm"], [9]))
    with compress(model, "norm", keep=9):
        pass


def test_a_refused_plan_is_a_row_with_the_reason(model, task):
    entries = grid(["norm"], ["=99/image", 9])
    rows = measure(model, stub.Processor(), task, entries, max_new_tokens=2, repeats=1)["rows"]
    assert "99" in rows[1]["error"] and "accuracy" not in rows[1]
    assert rows[2]["accuracy"] >= 0


def test_table_markdown(model, task):
    ticks = []
    text, result = table.testbed_table(
        model, stub.Processor(), methods=["random", "norm"], keeps=[18, 9], task=task, tick=lambda *t: ticks.append(t)
    )
    assert ticks[-1][0] == ticks[-1][1]
    assert "| all | 6 |" in text and "| method | 18 | 9 |" in text and "a stub" in text
    assert {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")} >= {"random", "norm"}
    assert json.loads(json.dumps(result))["rows"]
    page_before = f"# Title\n{table.START}\nold\n{table.END}\nrest\n"
    assert table.replaced(page_before, text) == f"# Title\n{table.START}\n{text}\n{table.END}\nrest\n"
    with pytest.raises(UnsupportedError, match="no place"):
        table.replaced("# Title\n", text)


def test_demo_and_page(model, task, monkeypatch):
    monkeypatch.setattr("foveate.bench.demo.KEEPS", {12: "1/3", 4: "1/9"})
    ticks = []
    result, figures = demo(
        model, stub.Processor(), task, methods=["random", "norm"], repeats=1, batch=3, tick=ticks.append
    )
    answers, times = steps(task, ["random", "norm"], 1, 3)
    assert (ticks.count("answers"), ticks.count("times")) == (answers, times)
    assert [row["share"] for row in result["rows"]] == ["all", "1/3", "1/9", "1/3", "1/9"]
    assert figures and all(len(f.panels) == 2 and f.tokens == 36 for f in figures)
    assert all(panel.tokens == 4 for f in figures for panel in f.panels)
    assert figures[0].drawn(48).width > 3 * 48
    html = page(result, figures)
    assert html.count("<figure>") == 3 * len(figures)
    for outside in ("http:", "https:", "<script", 'src="/', "@import", "url("):
        assert outside not in html
