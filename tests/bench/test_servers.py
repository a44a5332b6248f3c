"""Servers of the load test: ready or not, on this machine alone, and gone afterwards with all that they started."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate.bench.load import servers
from foveate.bench.load.servers import end, found, free_port, loopback, members, running, served
from foveate.errors import UnsupportedError

pytest.importorskip("psutil")

from bench import chat_server
from bench.chat_server import Stub

SCRIPT = str(Path(chat_server.__file__))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(servers, "PATIENCE", 5.0)


def start(*more, wait=60.0):
    port = free_port()
    return running("stub", [sys.executable, SCRIPT, "--port", str(port), *more], f"http://127.0.0.1:{port}", wait=wait)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"), ("http://localhost:81/v1/", "http://localhost:81"),
        ("127.0.0.2:99", "http://127.0.0.2:99"), ("http://[::1]:80/v1", "http://[::1]:80"),
        ("http://localhost", "http://localhost:80"),
    ],
)  # fmt: skip
def test_addresses_of_this_machine(url, base):
    assert loopback(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:8000", "http://10.0.0.1", "http://0.0.0.0:8000", "http://[::]:80", "http://localhost.example.org",
        "http://127.0.0.1.example.org", "http://127.0.0.1@example.org", "http://example.org#@127.0.0.1", "http://2130706433",
        "https://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1:8000/other", "file:///etc/hosts", "", "http://",
    ],
)  # fmt: skip
def test_addresses_elsewhere_are_refused(url):
    with pytest.raises(UnsupportedError) as caught:
        loopback(url)
    assert caught.value.where and caught.value.hint


def test_a_server_is_ready_inside_the_block_and_gone_behind_it():
    with start("--child") as server:
        assert server.model == "stub" and server.get("/v1/models")[0] == 200
        whole, pid = server.memory(), server.process.pid
        deadline = time.monotonic() + 60
        while (len(members(pid)) < 2 or server.memory() < 64) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(members(pid)) == 2
        assert server.memory() > 64 and whole > 1  # the child's 64 MiB count
    assert not members(pid) and server.process.returncode == -signal.SIGKILL
    assert server.get("/health") == (0, None)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_gone_after_an_error_too(kind):
    def work():
        with start() as server:
            seen.append(server.process.pid)
            raise kind

    seen = []
    with pytest.raises(kind):
        work()
    assert not members(seen[0])


def test_it_is_gone_even_if_the_end_is_interrupted(monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", chat_server.STUBBORN], start_new_session=True)
    with monkeypatch.context() as patch:
        patch.setattr(servers, "_gone", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with contextlib.suppress(KeyboardInterrupt):
            end(process)
    process.wait(30)
    assert not members(process.pid)


def test_a_signal_that_ends_this_process_ends_the_server(tmp_path):
    script = (
        "import sys, time\n"
        "from foveate.bench.load.servers import running, free_port\n"
        "port = free_port()\n"
        f"with running('stub', [sys.executable, {SCRIPT!r}, '--port', str(port)], f'http://127.0.0.1:{{port}}') as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        assert members(pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not members(pid)


def test_a_server_that_dies_says_what_it_wrote():
    line = [sys.executable, "-c", "import sys; print('no such plan'); sys.exit(3)"]
    with pytest.raises(UnsupportedError, match="ended with 3") as caught, running("stub", line, "http://127.0.0.1:9"):
        pass
    assert "no such plan" in caught.value.hint and "no such plan" in caught.value.where


def test_a_server_that_never_gets_ready_is_an_error_and_is_gone(monkeypatch):
    ended = []
    monkeypatch.setattr(servers, "end", lambda process: (ended.append(process.pid), end(process)))
    with pytest.raises(UnsupportedError, match="was not ready after 3 s") as caught, start("--health", "503", wait=3):
        pass
    assert ("HTTP 503" in caught.value.what) or "no answer" in caught.value.what
    assert ended and not members(ended[0])


def test_another_server_on_the_port_is_not_taken_for_ours():
    line = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    with Stub() as other, pytest.raises(UnsupportedError, match="ended with 0"):
        wait_for_the_end(running("stub", line, other.url))


def wait_for_the_end(started):
    with started as server:  # it may have been there for the first look
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            server.check()
            time.sleep(0.05)


def test_what_a_server_is_started_with_stays_clear_of_keys_and_is_told(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with start() as server:
        known = server.get("/version")[1]["environment"]
        about = server.about()
    assert "VLLM_API_KEY" not in known and known["OMP_NUM_THREADS"] == "1"
    assert about["version"] == "1.2" and about["variables"]["OMP_NUM_THREADS"] == "1"
    assert about["arguments"] == ["...", "--port", "..."] and "secret" not in json.dumps(about)


def test_a_server_that_runs_already_is_left_alone():
    with Stub() as stub, found(stub.url + "/v1") as server:
        assert server.model == "stub" and server.memory() is None
        assert server.about() == {"name": "running already", "version": "1.2"}
    with pytest.raises(UnsupportedError, match="no answer") as caught, found(stub.url, wait=0.2):
        pass
    assert stub.url in caught.value.where


@pytest.mark.parametrize("name", ["llava-1.5-9b/8", "no/such/folder", "qwen2.5-vl-7b/32"])
def test_a_model_that_cannot_be_served(name):
    with pytest.raises(UnsupportedError) as caught, served(name, "foveate", "float32"):
        pass
    assert caught.value.hint


def test_random_weights_have_a_processor_and_a_word_for_every_token():
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with served("llava-1.5-7b/32", "foveate", "bfloat16") as (folder, facts):
        assert facts["weights"] == "random" and str(folder) not in json.dumps(facts)
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read"}]}]
        prompt = processor.apply_chat_template(said, add_generation_prompt=True)
        fed = processor(images=[Image.new("RGB", (50, 40))], text=[prompt], return_tensors="pt").to(model.dtype)
        assert (fed["input_ids"] == model.config.image_token_id).sum() == 576
        answer = model.generate(**fed, max_new_tokens=5)[0, fed["input_ids"].shape[1] :]
        assert len(answer) == 5  # nothing ends it early
        words = processor.tokenizer.convert_ids_to_tokens(range(model.config.text_config.vocab_size))
        assert len(set(words)) == len(words) and None not in words
        assert processor.tokenizer.decode([31999]).strip() == "word31999"
    assert not os.path.exists(folder)
