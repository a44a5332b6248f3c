"""The load test's servers: a folder that they can load, their start on the loopback interface, their memory, their end.

A server runs in a session of its own, with all processes that it starts. Whatever happens, the session is ended with the
block that started it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import MissingExtraError, UnsupportedError, require

HOST = "127.0.0.1"
KEYS = ("FOVEATE_API_KEY", "VLLM_API_KEY")  # with one of them the server would ask for it
TOLD = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_PLUGINS",
)  # fmt: skip
"""Variables that go into a result if they are set."""
PATIENCE = 15.0  # seconds that a server has to end by itself
Starting = AbstractContextManager["Server"]


def loopback(url: str) -> str:
    """The address of a server on this machine, without a path.

    Raises:
        UnsupportedError: if it is no http address, or one of another machine: a load test of what belongs to others is
            an attack.
    """
    parts, hint = urlsplit(url if "//" in url else f"//{url}", "http"), "http://127.0.0.1:8000"
    try:
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise UnsupportedError(f"{url!r}: {error}", where="load test", hint=hint) from None
    if parts.scheme != "http" or not host or parts.username or parts.path.rstrip("/") not in ("", "/v1"):
        raise UnsupportedError(f"{url!r} is no address of a server", where="load test", hint=hint)
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    if not near:
        raise UnsupportedError(
            f"{host} is not the loopback interface", where="load test", hint=f"run it where the server is, {hint}"
        )
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]


class Server:
    """A server and its address.

    Args:
        name: for errors and results.
        url: its address, on the loopback interface.
        process: the one that was started; None for a server that ran already.
        log: file of what it wrote.
        line: its command.
        variables: its environment.
    """

    def __init__(
        self,
        name: str,
        url: str,
        process: subprocess.Popen[bytes] | None = None,
        log: Path | None = None,
        line: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.url, self.process, self.log, self.line = name, url, process, log, line
        self.variables = variables or {}
        self._model = ""

    @property
    def model(self) -> str:
        """The model as the server calls it."""
        if not self._model:
            status, found = self.get("/v1/models")
            try:
                self._model = found["data"][0]["id"]
            except (TypeError, KeyError, IndexError):
                raise UnsupportedError(
                    f"{self.url}/v1/models gave no model (HTTP {status})",
                    where=self.name,
                    hint="an OpenAI-style server",
                ) from None
        return self._model

    def about(self) -> dict[str, Any]:
        """Its name, its version if it gives one, and with what options and variables it was started."""
        status, found = self.get("/version")
        version = found.get("version") if status == 200 and isinstance(found, dict) else None
        if version is None and self.name == "foveate":
            from ... import __version__ as version
        about = {"name": self.name, "version": version}
        if self.process is None:
            return about
        variables = {name: self.variables[name] for name in TOLD if name in self.variables}
        return about | {"arguments": _shown(self.line), "variables": variables}

    def get(self, path: str, timeout: float = 5.0) -> tuple[int, Any]:
        """Status and JSON of a page; (0, None) if there is no answer, (status, None) if it is no JSON."""
        parts = urlsplit(self.url)
        link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
        try:
            link.request("GET", path)
            answer = link.getresponse()
            body = answer.read(1 << 20)
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            link.close()
        try:
            return answer.status, json.loads(body)
        except ValueError:
            return answer.status, None

    def wait(self, seconds: float) -> None:
        """Until /health answers with 200.

        Raises:
            UnsupportedError: if the process ends, or the time is over.
        """
        end, status = time.monotonic() + seconds, 0
        while status != 200:
            self.check()
            if time.monotonic() > end:
                said = f"HTTP {status}" if status else "no answer"
                raise self._error(f"{self.name} was not ready after {seconds:g} s: {said} at {self.url}/health")
            time.sleep(0.1)
            status, _ = self.get("/health")
        self.check()  # another server may have taken the port

    def check(self) -> None:
        """Raise an UnsupportedError if the process has ended."""
        if self.process is not None and (code := self.process.poll()) is not None:
            raise self._error(f"the server {self.name} ended with {code}")

    def _error(self, what: str) -> UnsupportedError:
        last = b"" if self.log is None else self.log.read_bytes()[-3000:]
        said = "\n".join(last.decode(errors="replace").strip().splitlines()[-25:])
        hint = f"what it wrote last:\n{said}" if said else "is a server running there?"
        return UnsupportedError(what, where=shlex.join(self.line) or self.url, hint=hint)

    def memory(self) -> float | None:
        """Resident memory of its processes in MiB, pages that they share counted in each; None if it ran already."""
        if self.process is None:
            return None
        size, psutil = 0, require("psutil", "serve")
        for one in members(self.process.pid):
            with suppress(psutil.Error):
                size += one.memory_info().rss
        return size / 2**20


def _shown(line: Sequence[str]) -> list[str]:
    """Options of a command without what differs from start to start: program, folder, port."""
    words, hide = list[str](), False
    for word in line[1:]:
        hide, hidden = word in ("--port", "--model"), hide
        words.append("..." if hidden or os.path.isabs(word) else word)
    return words


# ------------------------------------------------------------------------------------------------------- start and end


@contextmanager
def running(
    name: str, line: Sequence[str], url: str, variables: Mapping[str, str] | None = None, wait: float = 600.0
) -> Iterator[Server]:
    """A server for the length of a block, from the time it is ready.

    Args:
        name: for errors and results.
        line: its command.
        url: where it will answer.
        variables: of its environment, where they are not set already.
        wait: seconds that it may take to get ready.

    Raises:
        UnsupportedError: if it ends before it is ready, or takes longer; with the last lines that it wrote.
        MissingExtraError: without psutil.
    """
    require("psutil", "serve")  # before there is something to end
    with tempfile.TemporaryDirectory(prefix="foveate-load-") as folder, ended_by_signals():
        log = Path(folder) / "server.log"
        known = {**(variables or {}), **{key: value for key, value in os.environ.items() if key not in KEYS}}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=known
            )  # fmt: skip
        try:
            server = Server(name, url, process, log, line, known)
            server.wait(wait)
            yield server
        finally:
            end(process)


@contextmanager
def found(url: str, wait: float = 10.0) -> Iterator[Server]:
    """A server that runs already, and goes on.

    Raises:
        UnsupportedError: if it is on another machine, or not ready.
    """
    server = Server("running already", loopback(url))
    server.wait(wait)
    yield server


def members(session: int) -> list[Any]:
    """Processes of a session that are not over, as psutil's."""
    psutil = require("psutil", "serve")
    alive = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(one.pid) == session and one.status() != psutil.STATUS_ZOMBIE:
                alive.append(one)
    return alive


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its whole session: first by asking, then, also if this is interrupted, by force."""
    try:
        _signal(process.pid, signal.SIGTERM)
        _gone(process.pid, PATIENCE)
    finally:
        stop = time.monotonic() + PATIENCE
        while members(process.pid) and time.monotonic() < stop:  # one may have started another meanwhile
            _signal(process.pid, signal.SIGKILL)
            _gone(process.pid, 0.5)
        process.wait(PATIENCE)


def _signal(session: int, which: int) -> None:
    for one in members(session):
        with suppress(ProcessLookupError):
            os.kill(one.pid, which)


def _gone(session: int, seconds: float) -> None:
    stop = time.monotonic() + seconds
    while members(session) and time.monotonic() < stop:
        time.sleep(0.05)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block runs, the signals that end this process leave the block as an exception, so that it is tidied up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


# ------------------------------------------------------------------------------------------------------------ its model


@contextmanager
def served(name: str, server: str, dtype: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder that a server can load, for the length of a block, and what a result says of the model.

    Args:
        name: "testbed", a folder, or a shape of :mod:`foveate.bench.times.shapes`, whose random weights are written to the folder
            with the testbed's processor and a word for every token.
        server: "vllm" or "foveate".
        dtype: of random weights.

    Raises:
        UnsupportedError: if there is no such model, or the testbed's processor does not fit it.
        MissingExtraError: without the plug-in, for vLLM.
    """
    from ... import testbed

    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="foveate-load-") as place:
        weights = "trained"
        if name == "testbed":
            folder = testbed.model_path()
        elif (folder := Path(name)).is_dir():
            weights = "of the folder"
        else:
            folder, weights = _random(name, dtype, Path(place) / "random"), "random"
        config = json.loads((folder / "config.json").read_text())
        facts: dict[str, Any] = {
            "name": name if weights != "of the folder" else folder.name,
            "weights": weights,
            "dtype": dtype,
        }
        facts |= {"class": (config.get("architectures") or [None])[0], "parameters": _parameters(folder)}
        if server == "vllm":
            folder = _as_vllm_reads(folder, config, Path(place) / "named")
        yield folder, facts


def _random(name: str, dtype: str, folder: Path) -> Path:
    """A folder of a shape's random weights. Nothing in it ends an answer before its greatest length."""
    from PIL import Image
    from transformers import AutoProcessor
    from transformers.utils import logging

    from ... import testbed
    from ..times.shapes import build, config_of

    logging.disable_progress_bar()
    config = config_of(name)
    processor = AutoProcessor.from_pretrained(testbed.model_path())
    side, tokens = getattr(config.vision_config, "image_size", 0), getattr(config, "image_seq_length", None)
    if tokens is not None:
        processor.patch_size = config.vision_config.patch_size
        processor.image_processor.size = processor.image_processor.crop_size = {"height": side, "width": side}
        fed = processor(images=Image.new("RGB", (side, side)), text=processor.image_token)
        count = fed["input_ids"][0].count(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
    if tokens is None or count != tokens:
        raise UnsupportedError(
            f"{name} with the testbed's processor", where="load test", hint="llava-1.5-7b/8, or a folder with its own"
        )
    model = build(name, dtype)
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = processor.tokenizer.bos_token_id, None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    words = data["model"]["vocab"]
    words |= {f"▁word{i}": i for i in range(len(words), config.get_text_config().vocab_size)}
    file.write_text(json.dumps(data))
    return folder


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (no mapping)
    return count


def _as_vllm_reads(folder: Path, config: dict[str, Any], new: Path) -> Path:
    """The folder, or where its names of a LLaVA's tensors are not vLLM's, a copy with those."""
    from importlib import import_module

    from safetensors import safe_open

    try:
        checkpoint = import_module("foveate_vllm.checkpoint")
    except ImportError as error:
        raise MissingExtraError(f"no plug-in for vLLM: {error}", hint="pip install foveate-vllm") from error
    for path in folder.glob("*.safetensors") if config.get("model_type") == "llava" else ():
        with safe_open(path, "pt") as file:
            if any(checkpoint.renamed(key) != key for key in file.keys()):  # noqa: SIM118 (no mapping)
                return checkpoint.convert(folder, new)
    return folder
