"""The load test's clients, on a stub server that answers late, badly or not at all."""

import asyncio
import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.bench.load.traffic import EVERY, Outcome, bodies, drive, numbers, pictures, quantile, run

pytest.importorskip("openai")

from bench.chat_server import Stub


@pytest.fixture
def stub():
    with Stub() as server:
        yield server


def asked(stub, *what, **more):
    """Send one request for each thing to do, one by one."""
    shown = pictures(len(what), 32)
    requests = [bodies("stub", [shown[i]], 8, {"do": do, **more})[0] for i, do in enumerate(what)]
    return run(stub.url, requests, 1, timeout=20.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_numpys(values, share):
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)


def test_no_two_pictures_are_alike_and_a_run_shows_the_same_as_the_next():
    first, second = pictures(70, 48), pictures(70, 48, first=70)
    assert len({*first, *second}) == 140
    one, other = (
        [np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))) for text in found]
        for found in (first, second)
    )
    assert {picture.shape for picture in one + other} == {(48, 48, 3)}
    for before, after in zip(one, other, strict=True):
        assert (before[0, 0] != after[0, 0]).any()
        assert (before.reshape(-1, 3)[1:] == after.reshape(-1, 3)[1:]).all()
    assert len({picture[1:].tobytes() for picture in one}) > 30


def test_an_answer_is_timed_and_its_tokens_are_the_servers(stub):
    (one,), seconds = asked(stub, "answer", wait=0.3)
    assert one.error == "" and (one.prompt, one.output) == (108, 2)
    assert 0.3 <= one.first <= one.whole <= seconds  # the piece without text that comes at once is not the first
    (sent,) = stub.asked
    assert sent["stream"] and sent["stream_options"] == {"include_usage": True} and sent["max_tokens"] == 8
    (message,) = sent["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


@pytest.mark.parametrize(
    ("do", "kind"),
    [
        (500, "HTTP 500"), (503, "HTTP 503"), (400, "HTTP 400"), (307, "HTTP 307"), ("hang up", "connection"),
        ("error", "error in the stream"), ("gibberish", "JSONDecodeError"), ("break", "answer cut short"),
        ("silent", "no text"), ("torn", "connection"),
    ],
)  # fmt: skip
def test_errors_have_kinds(stub, do, kind):
    outcomes, _ = asked(stub, do, "answer")
    assert [one.error for one in outcomes] == [kind, ""]
    assert outcomes[0].whole is None and outcomes[0].said
    assert len(stub.asked) == 2  # nothing is tried again


def test_a_request_that_takes_too_long_is_an_error(stub):
    requests = bodies("stub", pictures(1, 32), 8, {"wait": 30})
    outcomes, _ = run(stub.url, requests, 1, timeout=0.5)
    assert [one.error for one in outcomes] == ["timeout"]


def test_nobody_there_is_an_error_of_its_own_kind():
    with Stub() as gone:
        pass
    outcomes, _ = run(gone.url, bodies("stub", pictures(2, 32), 8, {}), 2)
    assert [one.error for one in outcomes] == ["connection"] * 2


def test_a_proxy_is_not_asked(stub, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    outcomes, _ = asked(stub, "answer")
    assert not outcomes[0].error


def test_tokens_that_the_server_does_not_count_are_not_guessed(stub):
    found = numbers(*asked(stub, "answer", "no usage"))
    assert found["answered"] == 2 and found["prompt_tokens"] is None and found["output_tokens_per_second"] is None


@pytest.mark.parametrize("clients", [1, 3, 20])
def test_the_loop_is_closed(clients):
    now, most, sent, looks = 0, 0, [], []

    async def ask(body):
        nonlocal now, most
        now, sent[:] = now + 1, [*sent, body["i"]]
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return Outcome(1.0, 2.0)

    requests = [{"i": i} for i in range(2 * EVERY + 10)]
    outcomes, _ = asyncio.run(drive(ask, requests, clients, looks.append))
    assert sorted(sent) == list(range(len(requests))) and len(outcomes) == len(requests)
    assert most == clients and looks == [EVERY, 2 * EVERY]


def test_an_error_is_no_quick_answer():
    slow = [Outcome(1.0, 2.0, 100, 8), Outcome(3.0, 4.0, 200, 4)]
    quick = [
        Outcome(error="HTTP 500", said="first"),
        Outcome(error="HTTP 500", said="second"),
        Outcome(error="timeout"),
    ]
    found = numbers([slow[0], *quick, slow[1]], 6.0)
    assert (found["requests"], found["answered"]) == (5, 2)
    assert found["errors"] == {"HTTP 500": 2, "timeout": 1} and found["said"] == {"HTTP 500": "first", "timeout": ""}
    assert (found["first_token_p50"], found["latency_p50"]) == (2.0, 3.0)
    assert found["first_token_p95"] == pytest.approx(2.9)
    assert (found["requests_per_second"], found["output_tokens_per_second"]) == (pytest.approx(1 / 3), 2.0)
    assert (found["prompt_tokens"], found["output_tokens"]) == (150, 6)


def test_a_run_without_answers_has_no_times():
    found = numbers([Outcome(error="timeout")], 1.0)
    assert found["errors"] == {"timeout": 1} and not {"first_token_p50", "requests_per_second"} & set(found)
