"""`foveate serve` as clients meet it: real HTTP, the openai client, and the answers of the library itself."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from server import ask, counted, data_url, get, post, served
from starlette.requests import ClientDisconnect

import foveate
from foveate.serving.app import application
from foveate.serving.chat import Chat
from foveate.serving.limits import Limits
from foveate.serving.menu import Menu
from foveate.serving.turn import Turn


def alone(loaded, sample, plan, tokens=12):
    """What the library says without a server."""
    model, processor = loaded
    content = [{"type": "image", "image": sample.images[0]}, {"type": "text", "text": sample.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with foveate.compress(model, plan, processor=processor) as run, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    text = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text, run.report.sequence_out


def about(sample, **more):
    return ask(sample.question, data_url(sample.images[0]), **more)


@pytest.mark.parametrize(
    ("asked", "plan", "visual"),
    [
        (None, "divprune:keep=0.25", 144),
        ({"keep": 0.1}, "divprune:keep=0.1", 58),
        ({"keep": "32/image"}, "divprune:keep=32", 32),
        ({"plan": "visionzip"}, "visionzip:keep=64", 64),
        ({"plan": "fastv:keep=0.5 > snapkv:keep=64"}, "fastv:keep=0.5 > snapkv:keep=64", 288),
    ],
)
def test_answers_are_those_of_the_library(address, loaded, samples, asked, plan, visual):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0)
    extra = {} if asked is None else {"foveate": asked}
    for sample in samples:
        text, prompt = alone(loaded, sample, plan)
        messages = about(sample)["messages"]
        whole = client.chat.completions.create(model="testbed", messages=messages, max_tokens=12, extra_body=extra)
        assert whole.choices[0].message.content == text
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.prompt_tokens == prompt
        told = whole.usage.foveate
        assert (told["visual_tokens_before"], told["visual_tokens_after"]) == (576, visual)
        assert told["plan"] == str(foveate.Plan.of(plan))
        stream = client.chat.completions.create(
            model="testbed", messages=messages, max_tokens=12, extra_body=extra, stream=True
        )
        events = list(stream)
        assert "".join(event.choices[0].delta.content or "" for event in events) == text
        assert events[-1].choices[0].finish_reason == "stop"
        assert events[-1].usage == whole.usage


def test_two_budgets_at_once_do_not_mix(address, loaded, samples):
    keeps = [0.25, 0.02, 0.1, 0.25, 0.02, 0.1, 0.01, 0.2]
    wanted = {keep: alone(loaded, samples[0], f"divprune:keep={keep}")[0] for keep in keeps}
    with ThreadPoolExecutor(len(keeps)) as pool:
        answers = list(pool.map(lambda k: post(address, about(samples[0], foveate={"keep": k}))[1], keeps))
    for keep, answer in zip(keeps, answers, strict=True):
        assert answer["choices"][0]["message"]["content"] == wanted[keep]
        assert answer["usage"]["foveate"]["plan"] == str(foveate.Plan.of(f"divprune:keep={keep}"))


def test_a_stream_is_server_sent_events_to_the_end(address, samples):
    host, port = address.removeprefix("http://").split(":")
    wire = http.client.HTTPConnection(host, int(port), timeout=60)
    wire.request("POST", "/v1/chat/completions", json.dumps(about(samples[0], stream=True)))
    answer = wire.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")
    lines = [line for line in answer.read().decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_several_pictures_no_picture_and_a_conversation(address, samples):
    urls = [data_url(sample.images[0]) for sample in samples]
    status, answer = post(address, ask("which?", *urls[:2]))
    assert status == 200
    assert answer["usage"]["foveate"]["images"] == [[576, 144], [576, 144]]
    status, answer = post(address, ask("hello"))
    assert status == 200
    assert answer["usage"]["foveate"]["visual_tokens_before"] == 0
    assert answer["usage"]["prompt_tokens"] < 20
    first = ask(samples[0].question, urls[0])
    turns = [*first["messages"], {"role": "assistant", "content": "red"}, {"role": "user", "content": "and now?"}]
    status, answer = post(address, {"messages": turns, "max_tokens": 4})
    assert status == 200
    assert answer["usage"]["foveate"]["images"] == [[576, 144]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_other_file_formats(address, samples, kind):
    status, answer = post(address, ask("what?", data_url(samples[0].images[0], kind)))
    assert status == 200
    assert answer["usage"]["foveate"]["visual_tokens_after"] == 144


def test_length_stops_an_answer_and_is_said(address, samples):
    status, answer = post(address, about(samples[0]) | {"max_tokens": 1})
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_a_seed_is_the_requests_own(address, samples):
    """However many requests arrive in between."""
    body = about(samples[0], temperature=2.0, seed=7) | {"max_tokens": 8}

    def text(_):
        return post(address, body)[1]["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(text, range(6)))) == 1
    others = {post(address, body | {"seed": seed})[1]["choices"][0]["message"]["content"] for seed in range(8)}
    assert len(others) > 1


def test_state_pages(address):
    assert get(address, "/health") == (200, {"status": "ok", "model": "testbed", "in_flight": 0})
    status, models = get(address, "/v1/models")
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["testbed"]
    assert [offer["plan"] for offer in models["data"][0]["foveate"]][:2] == ["divprune:keep=0.25", "visionzip"]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="-")
    assert [model.id for model in client.models.list()] == ["testbed"]


def test_metrics_count(address, samples):
    names = ('foveate_requests_total{status="200"}', 'foveate_visual_tokens_total{when="after"}')
    names += ('foveate_visual_tokens_total{when="before"}', "foveate_first_token_seconds_count")
    before = [counted(address, name) for name in names]
    post(address, about(samples[0]))
    assert [counted(address, name) - b for name, b in zip(names, before, strict=True)] == [1, 144, 576, 1]
    assert counted(address, "foveate_requests_in_flight") == 0


def test_a_key(loaded):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=16))
    with served(chat, api_key="secret") as address:
        for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            status, answer = post(address, ask("x"), **wrong)
            assert status == 401
            assert "key" in answer["error"]["message"]
        assert get(address, "/v1/models")[0] == 401
        assert get(address, "/health")[0] == 200
        assert post(address, ask("x"), Authorization="Bearer secret")[0] == 200


@pytest.fixture
def held(loaded):
    """A server whose model is kept busy until the test lets it go; takes two requests at a time."""
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=64, in_flight=2))
    free = threading.Event()
    chat._manager.submit(free.wait)
    with served(chat) as address:
        yield chat, address, free
        free.set()


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_more_than_can_wait_are_sent_away_and_the_rest_are_answered(held, samples):
    _, address, free = held
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, address, about(samples[0], stream=bool(i))) for i in range(2)]
        until(lambda: get(address, "/health")[1]["in_flight"] == 2)
        status, answer = post(address, ask("x"))
        assert status == 503
        assert "waiting" in answer["error"]["message"]
        free.set()
        assert [each.result()[0] for each in waiting] == [200, 200]
    assert post(address, ask("x"))[0] == 200
    until(lambda: get(address, "/health")[1]["in_flight"] == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_while_waiting_costs_nothing(held, samples, stream):
    chat, address, free = held
    host, port = address.removeprefix("http://").split(":")
    wire = http.client.HTTPConnection(host, int(port), timeout=60)
    wire.request("POST", "/v1/chat/completions", json.dumps(about(samples[0], stream=stream)))
    until(lambda: chat._turns)
    (turn,) = chat._turns.values()
    wire.close()
    until(turn.gone.is_set)
    free.set()
    until(lambda: get(address, "/health")[1]["in_flight"] == 0)
    assert turn.written == 0
    assert counted(address, "foveate_generated_tokens_total") == 0
    assert post(address, ask("x"))[0] == 200


def test_who_hangs_up_in_the_middle_stops_the_model(loaded, samples, monkeypatch):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=64))
    turns, stepped = [], Turn.stepped

    def slow(turn, run):
        stepped(turn, run)
        turns.append(turn)
        if turn.written == 3:
            assert turn.gone.wait(60)

    monkeypatch.setattr(Turn, "stepped", slow)
    with served(chat) as address:
        wire = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        body = about(samples[0], stream=True, temperature=2.0, logit_bias=no_end(loaded)) | {"max_tokens": 64}
        wire.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = wire.getresponse()
        assert answer.read(6) == b"data: "
        answer.close()
        wire.close()
        until(lambda: get(address, "/health")[1]["in_flight"] == 0)
        assert turns[-1].over.wait(60)
        assert turns[-1].written <= 4
        monkeypatch.setattr(Turn, "stepped", stepped)
        assert post(address, ask("x"))[0] == 200


def test_who_leaves_while_the_first_token_is_made_is_not_counted_for_ever(loaded, samples, monkeypatch):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=64, in_flight=1))
    stepped, seen = Turn.stepped, threading.Event()

    def slow(turn, run):
        stepped(turn, run)
        seen.set()
        assert turn.gone.wait(60)

    monkeypatch.setattr(Turn, "stepped", slow)
    with served(chat) as address:
        wire = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        wire.request("POST", "/v1/chat/completions", json.dumps(about(samples[0], stream=True)))
        assert seen.wait(60)
        wire.close()
        until(lambda: get(address, "/health")[1]["in_flight"] == 0)
        monkeypatch.undo()
        assert not chat._turns
        assert post(address, ask("x"))[0] == 200


def test_nor_is_who_leaves_before_the_first_byte(loaded, samples):
    """Some servers say so when the response is begun, before anybody has asked the stream for an event."""
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=16))
    body = json.dumps(about(samples[0], stream=True)).encode()
    path = "/v1/chat/completions"
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "http"}
    asked = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return asked.pop() if asked else await asyncio.Event().wait()

    async def send(message):
        raise OSError("gone")

    async def once():
        await application(chat)(scope, receive, send)

    with pytest.raises(ClientDisconnect):
        asyncio.run(once())
    assert not chat._turns
    assert chat.metrics.in_flight._value.get() == 0


def test_what_breaks_in_the_middle_of_a_stream_ends_it_without_the_servers_insides(loaded, samples, monkeypatch):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=64))
    stepped = Turn.stepped

    def broken(turn, run):
        stepped(turn, run)
        if turn.written == 3:
            raise RuntimeError('CUDA says "no" at /secret/path')

    with served(chat) as address:
        monkeypatch.setattr(Turn, "stepped", broken)
        body = about(samples[0], stream=True, logit_bias=no_end(loaded))
        wire = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        wire.request("POST", "/v1/chat/completions", json.dumps(body))
        answer = wire.getresponse()
        assert answer.status == 200
        last = [line for line in answer.read().decode().split("\n\n") if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error == {"message": "the server failed: RuntimeError", "type": "server_error"}
        monkeypatch.undo()
        assert post(address, ask("x"))[0] == 200


def test_an_upload_that_is_broken_off_is_nobodys_fault(loaded):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=16))
    with served(chat) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n"
            wire.sendall(head.encode() + b'{"messages": ')
            until(lambda: get(address, "/health")[1]["in_flight"] == 1)
        until(lambda: get(address, "/health")[1]["in_flight"] == 0)
        assert counted(address, 'foveate_requests_total{status="500"}') == 0
        assert counted(address, 'foveate_requests_total{status="499"}') == 1


def no_end(loaded):
    """A bias by which an answer never ends by itself."""
    return {str(loaded[1].tokenizer.eos_token_id): -100.0}


def test_an_answer_without_a_number_of_tokens_fills_the_context_at_most(loaded, samples):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), Limits(new_tokens=64, context=600))
    body = about(samples[0], logit_bias=no_end(loaded))
    del body["max_tokens"]
    with served(chat) as address:
        status, answer = post(address, body)
        assert status == 200
        assert answer["usage"]["foveate"]["visual_tokens_before"] == 576
        prompt = answer["usage"]["prompt_tokens"] + 576 - 144
        assert answer["usage"]["completion_tokens"] == 600 - prompt
        status, answer = post(address, body | {"max_tokens": 64})
        assert status == 400
        assert f"{prompt} tokens before compression and 64 are asked for" in answer["error"]["message"]
        status, answer = post(address, ask("x", *[data_url(sample.images[0]) for sample in samples]))
        assert status == 400
        assert "tokens before compression" in answer["error"]["message"]


def test_the_model_is_left_as_it_was(address, loaded, samples):
    def hooks():
        modules = list(loaded[0].modules())
        return [key for module in modules for key in (*module._forward_pre_hooks, *module._forward_hooks)]

    assert post(address, about(samples[0]))[0] == 200  # transformers puts hooks of its own on at the first call
    before = hooks()
    for asked in ({"keep": 0.1}, {"plan": "visionzip"}, {"plan": "fastv:keep=0.5 > snapkv:keep=64"}):
        assert post(address, about(samples[0], foveate=asked))[0] == 200
    assert hooks() == before
