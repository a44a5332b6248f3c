"""What one request may ask of a server, and how a server says that it asked for more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import FoveateError


class RequestError(FoveateError, ValueError):
    """A request that is refused; the server goes on.

    Args:
        what: a sentence for the client.
        status: of the HTTP answer.
        param: the part of the request at fault, as ``messages.0.content.1``.
        hint: what to try.
    """

    def __init__(self, what: str, *, status: int = 400, param: str | None = None, hint: str = "") -> None:
        super().__init__(what, where=param or "", hint=hint)
        self.status, self.param = status, param


@dataclass(frozen=True)
class Limits:
    """Bounds on a request, and what it may have opened.

    Attributes:
        images: pictures in all of its messages.
        image_bytes: of one picture as it was sent, base64 taken off.
        pixels: of all its pictures, as their headers declare them; nothing larger is unpacked.
        body_bytes: of the request's body.
        new_tokens: tokens of an answer, at most and by default.
        context: tokens of prompt, before compression, and answer; None for what the model's configuration says.
        in_flight: requests that wait or run at once; one more is sent away.
        hosts: from which pictures may be fetched: "example.org" (https) or "http://127.0.0.1:9000".
        folders: under which pictures may be read by file:// addresses.
        seconds: that fetching a picture may take.
    """

    images: int = 16
    image_bytes: int = 20_000_000
    pixels: int = 64_000_000
    body_bytes: int = 64_000_000
    new_tokens: int = 1024
    context: int | None = None
    in_flight: int = 64
    hosts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    seconds: float = 10.0
