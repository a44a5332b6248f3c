"""What a server must survive: each of these is answered with a 4xx and a sentence, and the server goes on."""

from __future__ import annotations

import asyncio
import base64
import http.client
import http.server
import io
import json
import struct
import threading
import zlib

import pytest
from PIL import Image
from server import ask, data_url, get, image_part, post, served

from foveate import KeepError
from foveate.serving.chat import Chat
from foveate.serving.limits import Limits
from foveate.serving.menu import Menu

SMALL = data_url(Image.new("RGB", (8, 8), "red"))
SENTENCE = {"role": "user", "content": "x"}


def raw(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def claiming(width: int, height: int) -> str:
    """A PNG of a few bytes whose header says that it is huge."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return raw(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def png() -> bytes:
    return base64.b64decode(data_url(Image.effect_noise((64, 64), 50).convert("RGB")).partition(",")[2])


def said(content, **more):
    return {"messages": [{"role": "user", "content": content}], **more}


# name: (body, status, words of the sentence, param)
TABLE = {
    # the body
    "nothing": (b"", 400, "not JSON", None),
    "half of it": (b'{"messages": [', 400, "not JSON", None),
    "a list": (b"[]", 400, "no object", None),
    "bytes": (b"\xff\xfe\x00", 400, "not JSON", None),
    "brackets without end": (b"[" * 100_000, 400, "not JSON", None),
    "too much": (b" " * 400_000, 413, "300,000 bytes", None),
    # fields
    "no messages": ({}, 400, "messages", "messages"),
    "empty messages": ({"messages": []}, 400, "at least 1", "messages"),
    "unknown role": ({"messages": [{"role": "root", "content": "x"}]}, 400, "assistant", "messages.0.role"),
    "unknown field": (ask("x", top_z=3), 400, "not a field", "top_z"),
    "another model": (ask("x", model="gpt-5"), 404, "not served here", "model"),
    "two answers": (ask("x", n=2), 400, "should be 1", "n"),
    "hot": (ask("x", temperature=9), 400, "less than or equal to 2", "temperature"),
    "temperature in words": (ask("x", temperature="hot"), 400, "valid number", "temperature"),
    "top_p of nothing": (ask("x", top_p=0), 400, "greater than 0", "top_p"),
    "no tokens": (ask("x") | {"max_tokens": 0}, 400, "greater than or equal to 1", "max_tokens"),
    "more tokens than allowed": (ask("x") | {"max_tokens": 10**9}, 400, "at most 16", "max_tokens"),
    "stop at nothing": (ask("x", stop=""), 400, "at least 1 character", "stop"),
    "a word that does not exist": (ask("x", logit_bias={"99999999": 1}), 400, "logit_bias", "logit_bias"),
    "a word that is no number": (ask("x", logit_bias={"red": 1}), 400, "logit_bias", "logit_bias"),
    "a template of one's own": (ask("x", chat_template_kwargs={"chat_template": "x"}), 400, "not a field", None),
    "settings of one's own": (ask("x", generation_config="{}"), 400, "not a field", "generation_config"),
    "a video": (said([{"type": "video_url", "video_url": {"url": "x"}}]), 400, "video_url", "messages.0.content.0"),
    "tools that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        400,
        "not JSON",
        "messages",
    ),
    # compression
    "keep of nothing": (ask("x", SMALL, foveate={"keep": 0}), 400, "not a budget", "foveate.keep"),
    "keep of too much": (ask("x", SMALL, foveate={"keep": 1.5}), 400, "not a budget", "foveate.keep"),
    "keep in words": (ask("x", SMALL, foveate={"keep": "most"}), 400, "not a budget", "foveate.keep"),
    "keep above the cap": (ask("x", SMALL, foveate={"keep": 0.9}), 400, "cap, 50%", "foveate.keep"),
    "keep in another unit": (ask("x", SMALL, foveate={"keep": 64}), 400, "cannot be compared", "foveate.keep"),
    "a plan that is not offered": (ask("x", SMALL, foveate={"plan": "fastv"}), 400, "divprune", "foveate.plan"),
    "foveate in words": (ask("x", SMALL, foveate="divprune"), 400, "an object", "foveate"),
    "a field it has not": (ask("x", SMALL, foveate={"seed": 1}), 400, "it has seed", "foveate"),
    # pictures
    "no base64": (ask("x", "data:image/png;base64,***"), 400, "base64", "messages.0.content.0.image_url"),
    "no base64 said": (ask("x", "data:image/png,abc"), 400, "base64", "messages.0.content.0.image_url"),
    "an empty picture": (ask("x", "data:image/png;base64,"), 400, "empty", "messages.0.content.0.image_url"),
    "no picture": (ask("x", raw(b"hello, I am a text")), 400, "not a picture", "messages.0.content.0.image_url"),
    "half a picture": (ask("x", raw(png()[:3000])), 400, "broken", "messages.0.content.0.image_url"),
    "a picture with a hole": (
        ask("x", raw(png()[:200] + b"\0" * 64 + png()[264:])),
        400,
        "broken",
        "messages.0.content.0.image_url",
    ),
    "a document": (
        ask("x", raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "eps")),
        400,
        "not a picture",
        None,
    ),
    "a drawing": (ask("x", raw(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml")), 400, "not a picture", None),
    "a header that lies": (ask("x", claiming(60_000, 60_000)), 413, "pixels in all", "messages.0.content.0.image_url"),
    "more pixels than PNG has": (ask("x", claiming(2**31 - 1, 2**31 - 1)), 413, "pixels in all", None),
    "too large a picture": (ask("x", data_url(Image.new("RGB", (700, 700)))), 413, "700 x 700", None),
    "too large together": (
        ask("x", *[data_url(Image.new("RGB", (400, 400)))] * 3),
        413,
        "in all",
        "messages.0.content.2.image_url",
    ),
    "too large a file": (
        ask("x", data_url(Image.effect_noise((290, 290), 99).convert("RGB"))),
        413,
        "100,000 bytes",
        "messages.0.content.0.image_url",
    ),
    "too many pictures": (ask("x", *[SMALL] * 5), 400, "5 pictures", "messages"),
    "a picture in words": (said([image_part(7)]), 400, "valid string", "messages.0.content.0.image_url.url"),
    "an address from the network": (ask("x", "https://example.org/cat.png"), 400, "does not fetch", None),
    "an address of the machine": (ask("x", "http://127.0.0.1:22/"), 400, "does not fetch", None),
    "an address of the cloud": (ask("x", "http://169.254.169.254/latest/meta-data"), 400, "does not fetch", None),
    "a file": (ask("x", "file:///etc/passwd"), 400, "reads no file", None),
    "a path": (ask("x", "/etc/passwd"), 400, "address begins with", None),
    "another protocol": (ask("x", "ftp://example.org/cat.png"), 400, "address begins with", None),
    # prompts
    "a placeholder in the text": (said("what is in <image>?"), 400, "'<image>'", "messages.0.content"),
    "one in a part": (ask("<image>", SMALL), 400, "'<image>'", "messages.0.content.1.text"),
    "one in a tool": (ask("x", tools=[{"function": {"name": "f <image>"}}]), 400, "'<image>'", "tools"),
    "one in a call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '"<image>"'}}]}]},
        400,
        "'<image>'",
        "messages.0.tool_calls",
    ),
    "one in a name": ({"messages": [{"role": "user", "content": "x", "name": "<image>"}]}, 400, "'<image>'", None),
    "a text without end": (said("word " * 50_000), 400, "characters", "messages"),
    "a long text": (said("word " * 3000), 400, "context is 2,048", "messages"),
    "half a character": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "processor", "messages"),
}


@pytest.fixture(scope="module")
def strict(loaded):
    limits = Limits(images=4, image_bytes=100_000, pixels=400_000, body_bytes=300_000, new_tokens=16)
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"], cap="50%"), limits)
    with served(chat) as address:
        yield address


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_request_gets_a_sentence(strict, name):
    body, status, words, param = TABLE[name]
    for stream in (False, True):
        if stream and isinstance(body, bytes):
            continue
        found, answer = post(strict, body if isinstance(body, bytes) else {**body, "stream": stream})
        assert found == status, answer
        error = answer["error"]
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"
        assert param is None or error["param"] == param
    assert get(strict, "/health") == (200, {"status": "ok", "model": "testbed", "in_flight": 0})


def test_the_table_is_long_enough_and_good_requests_still_pass(strict):
    assert len(TABLE) >= 25
    status, answer = post(strict, ask("what?", SMALL))
    assert status == 200
    assert answer["usage"]["foveate"]["visual_tokens_after"] == 144


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/load_model", 404),  # transformers serve has these two
        ("POST", "/reset", 404),
        ("POST", "/v1/completions", 404),
        ("GET", "/docs", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_other_addresses_do_not_exist(strict, method, path, status):
    wire = http.client.HTTPConnection(strict.removeprefix("http://"), timeout=60)
    wire.request(method, path, b"{}")
    answer = wire.getresponse()
    assert answer.status == status
    assert "POST /v1/chat/completions" in json.loads(answer.read())["error"]["message"]


def test_a_body_without_a_length_is_read_no_further_than_allowed(strict):
    wire = http.client.HTTPConnection(strict.removeprefix("http://"), timeout=60)
    wire.request(
        "POST",
        "/v1/chat/completions",
        iter([b" " * 200_000] * 2),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert wire.getresponse().status == 413


def test_what_the_processor_does_not_take_is_for_the_client_to_mend(loaded):
    model, processor = loaded
    chat = Chat("testbed", model, processor, Menu(["divprune:keep=0.25"]), Limits(new_tokens=16))

    def shy(*args, **more):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 5000.0\nand more")

    with served(chat) as address:
        chat._prepared = shy
        status, answer = post(address, ask("x", SMALL))
    assert status == 400
    assert "aspect ratio must be smaller than 200" in answer["error"]["message"]
    assert "and more" not in answer["error"]["message"]


def test_what_breaks_inside_is_a_500_without_the_servers_insides(loaded):
    model, processor = loaded
    chat = Chat("testbed", model, processor, Menu(["divprune:keep=0.25"]), Limits(new_tokens=16))

    def broken(**more):
        raise RuntimeError("CUDA out of memory at /secret/path")

    with served(chat) as address:
        model.generate, stock = broken, model.generate
        try:
            for stream in (False, True):
                status, answer = post(address, ask("x", SMALL, stream=stream))
                assert status == 500
                assert answer["error"]["type"] == "server_error"
                assert "secret" not in answer["error"]["message"]
        finally:
            del model.generate
        assert model.generate == stock
        assert post(address, ask("x", SMALL))[0] == 200


def test_a_plan_that_does_not_fit_the_model_stops_the_start(loaded):
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.5", "visionzip:keep==999/image"]), Limits())
    with pytest.raises(KeepError, match="999 tokens, the image has 576"):
        asyncio.run(chat.warm_up())


# -- what was allowed at start --


class Pictures(http.server.BaseHTTPRequestHandler):
    """/picture, /redirect (to the picture), /huge, /missing."""

    file = base64.b64decode(SMALL.partition(",")[2])

    def do_GET(self):
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.file if self.path == "/picture" else b"\0" * 200_000)

    def log_message(self, *args):
        pass


@pytest.fixture
def allowing(loaded, tmp_path):
    """A server that may fetch from one host and read one folder; the host's address, and the folder."""
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{site.server_port}"
    folder = tmp_path / "shown"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a picture.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "hidden.png")
    (folder / "link.png").symlink_to(tmp_path / "hidden.png")
    limits = Limits(new_tokens=16, image_bytes=100_000, hosts=(host,), folders=(folder,), seconds=5)
    chat = Chat("testbed", *loaded, Menu(["divprune:keep=0.25"]), limits)
    with served(chat) as address:
        yield address, host, folder
    site.shutdown()
    site.server_close()


def test_what_is_allowed_is_opened_and_nothing_else(allowing):
    address, host, folder = allowing
    for url in (f"{host}/picture", f"file://{folder}/a%20picture.png"):
        assert post(address, ask("x", url))[0] == 200
    for url, words in {
        f"{host}/redirect": "302",
        f"{host}/missing": "404",
        f"{host}/huge": "100,000 bytes",
        host.replace("127.0.0.1", "localhost") + "/picture": "does not fetch",
        host.replace("http", "https") + "/picture": "does not fetch",
        host.replace("//", "//user@") + "/picture": "does not fetch",
        f"file://{folder}/../hidden.png": "reads no file",
        f"file://{folder}/%2e%2e/hidden.png": "reads no file",
        f"file://{folder}/link.png": "reads no file",
        f"file://{folder}/none.png": "reads no file",
        f"file://{folder}": "reads no file",
        f"file://elsewhere{folder}/a%20picture.png": "reads no file",
        f"file://{folder}/a%00.png": "reads no file",
    }.items():
        status, answer = post(address, ask("x", url))
        assert status in (400, 413), url
        assert words in answer["error"]["message"], url


def test_the_first_frame_of_an_animation(strict):
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert post(strict, ask("x", raw(file.getvalue(), "gif")))[0] == 200
