"""From what a request names to a picture in memory: sent along by default, from a host or folder only if it was allowed."""

from __future__ import annotations

import base64
import binascii
import io
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageOps

from .limits import Limits, RequestError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_CHUNK = 1 << 16


class _Stay(urllib.request.HTTPRedirectHandler):
    """An allowed host must not lead to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def opened(urls: list[tuple[str, str]], limits: Limits) -> list[Image.Image]:
    """The pictures of a request.

    Args:
        urls: where in the request each stands, and its address: a ``data:`` one, or what ``limits`` allows.

    Returns:
        RGB pictures, turned as their EXIF says; of an animation, the first frame.

    Raises:
        RequestError: too many, too large, not to be opened, or not a picture.
    """
    if len(urls) > limits.images:
        raise RequestError(
            f"the request has {len(urls)} pictures, this server takes {limits.images}",
            param="messages",
            hint="fewer pictures",
        )
    found: list[Image.Image] = []
    left = limits.pixels
    for param, url in urls:
        picture = _picture(_bytes(url, param, limits), param, left, limits)
        left -= picture.width * picture.height
        found.append(picture)
    return found


def _bytes(url: str, param: str, limits: Limits) -> bytes:
    kind = url.partition(":")[0].lower() if ":" in url[:16] else ""
    if kind == "data":
        return _sent(url, param, limits)
    if kind in ("http", "https"):
        return _fetched(url, param, limits)
    if kind == "file":
        return _read(url, param, limits)
    raise RequestError(
        f"a picture's address begins with {url[:16]!r}",
        param=param,
        hint="data:image/png;base64,... with the picture itself",
    )


def _sent(url: str, param: str, limits: Limits) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError(
            f"a data address begins with {head[:40]!r}", param=param, hint="data:image/png;base64,... of the file"
        )
    data = "".join(data.split())
    if len(data) // 4 * 3 > limits.image_bytes + 2:
        raise _too_big(param, limits)
    try:
        found = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the picture's base64 cannot be read: {error}", param=param) from None
    if not found:
        raise RequestError("the picture is empty", param=param, hint="the bytes of an image file, in base64")
    return found


def _fetched(url: str, param: str, limits: Limits) -> bytes:
    parts = urlsplit(url)
    host = (parts.netloc.rpartition("@")[2]).lower()
    allowed = host in limits.hosts if parts.scheme == "https" else f"{parts.scheme}://{host}" in limits.hosts
    if not allowed or "@" in parts.netloc:
        raise RequestError(
            f"this server does not fetch pictures from {parts.scheme}://{host}",
            param=param,
            hint="send the picture as data:image/png;base64,...; who runs the server can allow a host with --allow-host",
        )
    until = time.monotonic() + limits.seconds
    try:
        with urllib.request.build_opener(_Stay).open(url, timeout=limits.seconds) as answer:
            found = bytearray()
            while piece := answer.read1(_CHUNK):
                found += piece
                if len(found) > limits.image_bytes:
                    raise _too_big(param, limits)
                if time.monotonic() > until:
                    raise RequestError(f"{host} took longer than {limits.seconds:g} s", param=param)
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise RequestError(f"the picture could not be fetched from {host}: {reason}", param=param) from None
    return bytes(found)


def _read(url: str, param: str, limits: Limits) -> bytes:
    refused = RequestError(
        "this server reads no file of that name",
        param=param,
        hint="send the picture as data:image/png;base64,...; who runs the server can allow a folder with --allow-folder",
    )
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or "\0" in unquote(parts.path):
        raise refused
    # Resolved, so that neither .. nor a link leads out of the folder.
    path = Path(unquote(parts.path)).resolve()
    if not any(path.is_relative_to(folder.resolve()) for folder in limits.folders) or not path.is_file():
        raise refused
    if path.stat().st_size > limits.image_bytes:
        raise _too_big(param, limits)
    return path.read_bytes()


def _too_big(param: str, limits: Limits) -> RequestError:
    return RequestError(
        f"the picture has more than {limits.image_bytes:,} bytes", status=413, param=param, hint="a smaller file"
    )


def _too_large(what: str, param: str, limits: Limits) -> RequestError:
    return RequestError(
        f"{what}; a request may hold {limits.pixels:,} pixels in all",
        status=413,
        param=param,
        hint="smaller pictures: most models scale them down anyway",
    )


def _picture(data: bytes, param: str, pixels: int, limits: Limits) -> Image.Image:
    if len(data) > limits.image_bytes:
        raise _too_big(param, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is ours, see below
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            size = picture.width * picture.height
            if size > pixels:
                raise _too_large(f"a picture is {picture.width} x {picture.height} px", param, limits)
            return (ImageOps.exif_transpose(picture) or picture).convert("RGB")
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise _too_large("a picture has more pixels than Pillow would unpack", param, limits) from None
    except Exception as error:
        # Pillow's decoders raise what they like on broken files (OSError, SyntaxError, struct.error, ValueError, ...).
        fault = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else f"broken: {_line(error)}"
        raise RequestError(f"the picture is {fault}", param=param, hint=", ".join(FORMATS)) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
