"""The load test's clients: closed loops of streaming chat requests with pictures, and the numbers of one run.

A client asks, reads the answer to its end, and asks again; so many clients at once are the concurrency. Pictures are
encoded before the clock starts, and no two requests of a measurement carry the same one, so that no cache of a server
answers for its encoder.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import require

QUESTION = "read the first line"  # the testbed has an answer to it
EVERY = 50  # requests between two looks at the memory
Body = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        first: seconds from sending to the first piece of text; None after an error.
        whole: seconds from sending to the end of the answer; None after an error.
        prompt, output: tokens as the server counts them; None if it does not say.
        error: its kind; "" for an answer.
        said: the error's own words.
    """

    first: float | None = None
    whole: float | None = None
    prompt: int | None = None
    output: int | None = None
    error: str = ""
    said: str = ""


def pictures(count: int, side: int, first: int = 0) -> list[str]:
    """Pictures of the testbed as PNG data addresses, no two alike.

    Args:
        count: how many; the first shows the same every time.
        side: pixels of their sides.
        first: number of the first one. Every picture carries its number as the colour of its first pixel.
    """
    from ... import testbed

    # Two questions in a row are about the same picture.
    shown = [sample.images[0] for sample in testbed.samples(["reading-dense"], limit=min(128, 2 * count))[::2]]
    made = []
    for i in range(count):
        picture, number = shown[i % len(shown)].resize((side, side)), first + i
        picture.putpixel((0, 0), (number >> 16 & 255, number >> 8 & 255, number & 255))
        picture.save(data := io.BytesIO(), "PNG", compress_level=1)
        made.append("data:image/png;base64," + base64.b64encode(data.getvalue()).decode())
    return made


def bodies(model: str, shown: Sequence[str], new_tokens: int, fields: dict[str, Any]) -> list[Body]:
    """Requests as the client of the OpenAI package takes them: one picture and one question each.

    Args:
        model: as the server calls it.
        shown: addresses of the pictures.
        new_tokens: longest answer.
        fields: what the requests hold besides OpenAI's own.
    """
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION},
            ]}],
            "max_tokens": new_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
            "extra_body": fields,
        }
        for picture in shown
    ]  # fmt: skip


class _NoAnswerError(Exception):
    """A stream that came to an end without an answer."""


async def ask(client: Any, body: Body, timeout: float) -> Outcome:
    """Send one request and read its answer to the end.

    Args:
        client: an `openai.AsyncOpenAI` that does not try again by itself.
        body: of :func:`bodies`.
        timeout: seconds for all of it.
    """
    start = time.perf_counter()
    try:
        return await asyncio.wait_for(_answer(client, body, start), timeout)
    except Exception as error:  # whatever it is, it is counted by its kind
        return Outcome(error=kind_of(error), said=str(error)[:300])


async def _answer(client: Any, body: Body, start: float) -> Outcome:
    first, finished, usage = None, False, None
    async with await client.chat.completions.create(**body) as stream:
        async for piece in stream:
            usage = piece.usage or usage
            for choice in piece.choices:
                if first is None and choice.delta.content:
                    first = time.perf_counter() - start
                finished = finished or choice.finish_reason is not None
    whole = time.perf_counter() - start
    if not finished:
        raise _NoAnswerError("answer cut short")
    if first is None:
        raise _NoAnswerError("no text")
    return Outcome(first, whole, usage and usage.prompt_tokens, usage and usage.completion_tokens)


def kind_of(error: Exception) -> str:
    """A short name by which errors are counted: "HTTP 500", "timeout", "connection", ..."""
    openai = require("openai", "serve")
    if isinstance(error, _NoAnswerError):
        return str(error)
    if isinstance(error, asyncio.TimeoutError | openai.APITimeoutError):
        return "timeout"
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}"
    # A connection that breaks in the middle of an answer: some releases hand on what the HTTP library raised.
    if isinstance(error, openai.APIConnectionError) or type(error).__module__.startswith("http"):
        return "connection"
    return "error in the stream" if isinstance(error, openai.APIError) else type(error).__name__


async def drive(
    ask: Callable[[Body], Awaitable[Outcome]],
    requests: Sequence[Body],
    concurrency: int,
    done: Callable[[int], None] | None = None,
) -> tuple[list[Outcome], float]:
    """A closed loop: each of ``concurrency`` clients takes the next request as soon as it has its answer.

    Args:
        ask: sends one request.
        requests: all of them.
        concurrency: clients at once.
        done: called, in another thread, with the number of finished requests after each :data:`EVERY`.

    Returns:
        The outcomes in the order of their ends, and the seconds from the first request to the last end.
    """
    waiting, outcomes = iter(requests), list[Outcome]()

    async def client() -> None:
        for body in waiting:
            outcomes.append(await ask(body))
            if done is not None and (count := len(outcomes)) % EVERY == 0:
                await asyncio.to_thread(done, count)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes, time.perf_counter() - start


def run(
    url: str,
    requests: Sequence[Body],
    concurrency: int,
    timeout: float = 300.0,
    done: Callable[[int], None] | None = None,
) -> tuple[list[Outcome], float]:
    """:func:`drive` on a server, with a client that neither tries again, nor follows a redirect, nor uses a proxy.

    Args:
        url: of the server, without ``/v1``.
        requests, concurrency, done: see :func:`drive`.
        timeout: seconds of one request.

    Raises:
        MissingExtraError: without the package openai.
    """
    openai = require("openai", "serve")

    async def whole() -> tuple[list[Outcome], float]:
        plain = openai.DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False)
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=timeout, http_client=plain
        ) as client:
            return await drive(lambda body: ask(client, body, timeout), requests, concurrency, done)

    return asyncio.run(whole())


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, linear between neighbours, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def numbers(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """What a run says. Times and rates are of answers alone: a quick error never looks like a quick answer.

    Returns:
        "requests", "answered", "errors" (kind: count), "said" (kind: words of its first error), "seconds", and where there
        are answers: p50 and p95 of the first text and of the whole answer in seconds, answers and output tokens per
        second, tokens of a prompt and of an answer (means). A count of tokens that any answer lacks is None.
    """
    good = [one for one in outcomes if not one.error]
    found: dict[str, Any] = {
        "requests": len(outcomes), "answered": len(good), "seconds": seconds,
        "errors": dict(Counter(one.error for one in outcomes if one.error)),
        "said": {one.error: one.said for one in reversed(outcomes) if one.error},
    }  # fmt: skip
    if not good:
        return found
    for name, times in (("first_token", [one.first for one in good]), ("latency", [one.whole for one in good])):
        known = [t for t in times if t is not None]
        found |= {f"{name}_p50": quantile(known, 0.5), f"{name}_p95": quantile(known, 0.95)}
    prompt, output = ([getattr(one, name) for one in good] for name in ("prompt", "output"))
    return found | {
        "requests_per_second": len(good) / seconds,
        "output_tokens_per_second": None if None in output else sum(output) / seconds,
        "prompt_tokens": None if None in prompt else sum(prompt) / len(good),
        "output_tokens": None if None in output else sum(output) / len(good),
    }
