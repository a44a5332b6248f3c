"""`foveate serve` as a process: what it says at start, that it answers, and that it ends when told to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from foveate.cli import app


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--plan", "divprun:keep=0.25"], "divprun"),
        (["--plan", "divprune"], "no budget"),
        (["--plan", "divprune", "--keep", "7.5"], "keep=7.5"),
        (["--plan", "divprune:keep=0.5", "--cap", "0.25"], "above this server's cap"),
        (["--plan", "nothing.json"], "nothing.json"),
        (["--plan", "divprune:keep=0.5", "--dtype", "float7"], "float7"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_port_is_opened(words, fault):
    done = CliRunner().invoke(app, ["serve", "testbed", *words])
    assert done.exit_code == 2
    assert fault in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_model(tmp_path):
    done = CliRunner().invoke(app, ["serve", str(tmp_path), "--plan", "divprune:keep=0.5"])
    assert done.exit_code == 2
    assert "cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_comes_up_answers_and_goes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "foveate.cli", "serve", "testbed", "--plan", "divprune:keep=0.25"]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < until
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert json.load(answer)["status"] == "ok"
                break
            except OSError:
                time.sleep(0.2)
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] <= 2
    finally:
        server.send_signal(signal.SIGTERM)
        told = server.communicate(timeout=60)[1]
    assert server.returncode in (0, -signal.SIGTERM)
    assert "divprune:keep=0.25, keep 25% (at most 25%)" in told
    assert "Traceback" not in told
