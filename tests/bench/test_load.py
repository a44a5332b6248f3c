"""The load test: variants in turns, ratios within rounds, memory; and its command, on a stub server."""

import contextlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from foveate import Plan
from foveate.bench.load.load import (
    METRICS,
    PLAIN,
    Load,
    Session,
    Variant,
    drift,
    measure_load,
    sessions_at,
    sessions_of,
    summary,
)
from foveate.bench.load.servers import found, free_port, running
from foveate.cli import app
from foveate.errors import PlanError, UnsupportedError

pytest.importorskip("openai")
pytest.importorskip("psutil")

from bench import chat_server
from bench.chat_server import Stub

SMALL = {"concurrency": (1, 2), "requests": 3, "warm_up": 1, "side": 32, "new_tokens": 4}


@pytest.fixture
def stub():
    with Stub() as server:
        yield server


def invoke(*words):
    return CliRunner().invoke(app, ["bench", "load", *map(str, words)])


def test_variants_take_turns_and_no_picture_comes_twice(stub):
    session = Session(lambda: found(stub.url), [Variant(PLAIN, {"of": "a"}), Variant("plan", {"of": "b"})])
    ticks, saved = [], []
    result = measure_load([session], Load(**SMALL, rounds=2), tick=lambda *a: ticks.append(a), save=saved.append)
    shown = [one["messages"][0]["content"][0]["image_url"]["url"] for one in stub.asked]
    assert len(shown) == len(set(shown)) == 2 * 2 * 2 * (1 + 3)
    order = [(one["label"], one["round"], one["concurrency"]) for one in result["runs"]]
    assert order == [
        (PLAIN, 0, 1), ("plan", 0, 1), (PLAIN, 0, 2), ("plan", 0, 2),
        ("plan", 1, 1), (PLAIN, 1, 1), ("plan", 1, 2), (PLAIN, 1, 2),
    ]  # fmt: skip
    assert "".join(one["of"] for one in stub.asked) == "aaaabbbbaaaabbbb" + "bbbbaaaabbbbaaaa"
    assert all(one["requests"] == one["answered"] == 3 for one in result["runs"])  # warm-up is left out
    assert [(row["label"], row["concurrency"]) for row in result["rows"]] == [
        (PLAIN, 1), ("plan", 1), (PLAIN, 2), ("plan", 2),
    ]  # fmt: skip
    assert result["rows"][1]["prompt_tokens"] == {"median": 104, "over": 1.0, "range": [1.0, 1.0]}
    assert ticks[-1][1:] == (7, 8) and len(saved) == 2 and result["memory"] == []
    assert json.loads(json.dumps(result))["server"]["version"] == "1.2"


def test_servers_start_anew_each_round_and_backwards_in_the_second(stub):
    started = []

    @contextlib.contextmanager
    def start(name):
        started.append(name)
        with found(stub.url) as server:
            yield server

    sessions = [Session(lambda name=name: start(name), [Variant(name)]) for name in (PLAIN, "one", "two")]
    measure_load(sessions, Load(**SMALL | {"warm_up": 0}, rounds=2))
    assert started == [PLAIN, "one", "two", "two", "one", PLAIN]


def test_memory_is_looked_at_on_the_way_and_a_soak_has_a_line():
    port = free_port()
    line = [sys.executable, str(Path(chat_server.__file__)), "--port", str(port)]
    session = Session(lambda: running("stub", line, f"http://127.0.0.1:{port}"), [Variant(PLAIN), Variant("plan")])
    load = Load(concurrency=(8,), requests=60, rounds=1, warm_up=2, side=32, soak=200)
    result = measure_load([session], load)
    (memory,), (soak,) = result["memory"], result["soak"]
    assert [place for place, _ in memory["points"]] == [52, 62, 114, 124] and all(
        mib > 1 for _, mib in memory["points"]
    )
    assert [place for place, _ in soak["points"]] == [0, 50, 100, 150, 200]
    assert soak["label"] == "plan" and soak["answered"] == 200 and soak["line"]["points"] == 3


def test_a_server_that_dies_on_the_way_is_an_error():
    port = free_port()
    line = [sys.executable, str(Path(chat_server.__file__)), "--port", str(port)]
    start = lambda: running("stub", line, f"http://127.0.0.1:{port}")  # noqa: E731
    with pytest.raises(UnsupportedError, match="ended with 7"):
        measure_load([Session(start, [Variant(PLAIN, {"do": "die"})])], Load(**SMALL, rounds=1))


def test_ratios_are_within_rounds():
    def one(label, turn, value, errors=()):
        known = dict.fromkeys(METRICS, value) if value else {}
        counted = {kind: errors.count(kind) for kind in errors}
        return {"label": label, "round": turn, "concurrency": 4, "requests": 10, "answered": 10 - len(errors),
                "errors": counted, **known}  # fmt: skip

    runs = [
        one("plan", 0, 1.0), one(PLAIN, 0, 2.0), one(PLAIN, 1, 20.0), one("plan", 1, 5.0, ["timeout"]),
        one(PLAIN, 2, None, ["timeout"] * 10), one("plan", 2, 7.0, ["timeout", "HTTP 500"]),
    ]  # fmt: skip
    plain, plan = summary(runs)
    assert plain["label"] == PLAIN and plain["latency_p50"] == {"median": 11.0}
    assert plan["latency_p50"] == {"median": 5.0, "over": 0.375, "range": [0.25, 0.5]}
    assert plan["errors"] == {"timeout": 2, "HTTP 500": 1} and (plan["requests"], plan["answered"]) == (30, 27)


def test_the_line_of_a_soak_is_least_squares_over_the_last_two_thirds():
    exact = drift([(0, 90.0), (50, 99.0), *((x, 100 + 0.02 * x) for x in range(100, 301, 50))])
    assert exact["points"] == 4 and exact["mib_per_100"] == pytest.approx(2.0)  # from 150 on
    assert (exact["low"], exact["high"]) == (pytest.approx(2.0), pytest.approx(2.0))
    rng = np.random.default_rng(0)
    x = np.arange(200, 501, 50)
    y = 100 + 0.01 * x + rng.normal(0, 1, len(x))
    got = drift(list(zip(x.tolist(), y.tolist(), strict=True)))
    (slope, _), cov = np.polyfit(x, y, 1, cov=True)  # 2.571: Student's t, 5 degrees of freedom
    assert got["mib_per_100"] == pytest.approx(100 * slope)
    assert got["high"] - got["mib_per_100"] == pytest.approx(100 * 2.570582 * cov[0, 0] ** 0.5, rel=1e-4)
    assert drift([(0, 1.0), (50, 1.0), (100, 1.0)]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": 2001}, {"requests": 0}, {"concurrency": (1, 257)}, {"concurrency": (0,)}, {"concurrency": ()},
        {"soak": 100}, {"soak": 20001}, {"rounds": 0}, {"new_tokens": 0}, {"side": 4096},
    ],
)  # fmt: skip
def test_a_load_test_has_bounds(wrong):
    with pytest.raises(UnsupportedError) as caught:
        Load(**wrong)
    assert caught.value.hint


def test_what_is_started_for_which_plans(tmp_path):
    plans = ["divprune:keep=0.25", "divprune:keep=25%", "fastv:keep=64"]
    of_vllm = sessions_of("vllm", tmp_path, plans, Load(new_tokens=5))
    assert [[v.label for v in s.variants] for s in of_vllm] == [[PLAIN], ["divprune:keep=25%"], ["fastv:keep=64/image"]]
    assert of_vllm[0].variants[0].fields == {"ignore_eos": True, "min_tokens": 5}
    assert [s.start.args[1] for s in of_vllm] == [None, Plan.of(plans[0]), Plan.of(plans[2])]
    (one,) = sessions_of("foveate", tmp_path, plans, Load())
    asked = [v.fields["foveate"]["plan"] for v in one.variants]
    assert asked == ["stride:keep=100%", "divprune:keep=25%", "fastv:keep=64/image"] == one.start.args[1]
    with pytest.raises(PlanError, match="positions"):
        sessions_of("foveate", tmp_path, [plans[0], Plan.of(plans[2], positions="contiguous")], Load())
    both, alone = sessions_at("http://localhost:1", "foveate"), sessions_at("http://localhost:1", "")
    assert [len(s.variants) for s in both + alone] == [2, 1]


def test_the_command_measures_a_server_that_runs(stub, tmp_path):
    out = tmp_path / "deep" / "load.json"
    done = invoke("--url", stub.url, "--server", "foveate", "--concurrency", "1,2", "--requests", 3, "--rounds", 2,
                  "--side", 32, "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert (result["bench"], result["schema"], result["model"]["name"]) == ("load", 1, "served already")
    assert (
        result["command"].startswith(f"foveate bench load --server foveate --url {stub.url}")
        and result["environment"]["cores"]
    )
    assert {row["label"] for row in result["rows"]} == {PLAIN, "as served"} and len(result["runs"]) == 8
    assert "as served" in done.stdout and re.search(r"x\d+\.\d\d", done.stdout)
    assert {json.dumps(one.get("foveate")) for one in stub.asked} == {'{"keep": 1.0}', "null"}


def test_the_command_shows_errors_and_fails_if_there_is_nothing_else(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "foveate.bench.load.load.sessions_at",
        lambda *a: [Session(lambda: found(stub.url), [Variant(PLAIN, {"do": 500})])],
    )
    done = invoke("--url", stub.url, "--concurrency", 1, "--requests", 2, "--rounds", 1, "--out", tmp_path / "a.json")
    assert done.exit_code == 1 and "2 HTTP 500" in done.stdout and "stub says 500" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://192.168.0.1:8000"], "not the loopback interface"),
        (["--url", "http://127.0.0.1:1", "--plan", "divprune:keep=0.25"], "both --url and --plan"),
        (["testbed", "--server", "vllm"], "no plan"),
        (["testbed", "--plan", "divprune:keep=0.25"], "--server"),
        (["testbed", "--plan", "divprune:keep=0.25", "--server", "other"], "--server 'other'"),
        (["--url", "http://127.0.0.1:1", "--requests", "2001"], "requests: 2001"),
        (["--url", "http://127.0.0.1:1", "--concurrency", "300"], "concurrency: 300"),
        (["testbed", "--plan", "nonsense:keep=1", "--server", "foveate"], "nonsense"),
        (["no-such-folder", "--plan", "divprune:keep=0.25", "--server", "foveate"], "no-such-folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_before_anything_starts(words, said, tmp_path):
    done = invoke(*words, "--out", tmp_path / "a.json")
    assert done.exit_code == 2 and said in done.stderr and "try " in done.stderr
