"""A running server for tests: the testbed behind real HTTP on a free port of the loopback interface."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import uvicorn
from PIL import Image

from foveate.serving.app import application
from foveate.serving.chat import Chat


@contextlib.contextmanager
def served(chat: Chat, api_key: str | None = None) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    config = uvicorn.Config(application(chat, api_key), host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def data_url(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as clients send it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(url: str) -> dict[str, Any]:
    """A picture in a message."""
    return {"type": "image_url", "image_url": {"url": url}}


def ask(text: str, *urls: str, **more: Any) -> dict[str, Any]:
    """A request about pictures."""
    content = [*map(image_part, urls), {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 12, **more}


def post(address: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer; ``body`` is sent as it is if it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", data, {"Content-Type": "application/json"} | headers
    )
    return opened(request)


def get(address: str, path: str, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of a page."""
    return opened(urllib.request.Request(address + path, headers=headers))


def opened(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def counted(address: str, name: str) -> float:
    """A counter of the metrics page; 0 if it has not been touched."""
    lines = str(get(address, "/metrics")[1]).splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)
