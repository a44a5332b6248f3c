"""A chat request as it came in, checked before anything is done about it.

The fields are OpenAI's for chat completions, and ``foveate``. A field that would change the answer and is not supported is
refused, not passed over; those that are only notes for the server (``user``, ``metadata``) are taken.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .limits import RequestError


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImageUrl(_Model):
    """Address of a picture."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Model):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(_Model):
    """Text in a message."""

    type: Literal["text"]
    text: str


Stop = Annotated[str, Field(min_length=1, max_length=256)]
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Model):
    """A turn of the conversation. What an earlier answer had besides may come back with it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(_Model):
    """A request for a chat completion."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=1000)
    foveate: Any = None
    stream: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, gt=-1, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[dict[str, Any]] | None = None
    # Taken, and without effect here.
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: Any = None
    service_tier: Any = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    # What would change the answer is taken at the value that it has anyway.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None

    def images(self) -> list[tuple[str, str]]:
        """Where in the request each picture stands, and its address."""
        return [
            (f"messages.{i}.content.{j}.image_url", part.image_url.url)
            for i, message in enumerate(self.messages)
            if isinstance(message.content, list)
            for j, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]

    def texts(self) -> list[tuple[str, str]]:
        """Where in the request each text stands that comes into the prompt, and the text; tools and calls as JSON."""
        found = [] if self.tools is None else [("tools", json.dumps(self.tools, ensure_ascii=False))]
        for i, message in enumerate(self.messages):
            for name in ("name", "tool_call_id"):
                if (value := getattr(message, name)) is not None:
                    found.append((f"messages.{i}.{name}", value))
            if message.tool_calls is not None:
                found.append((f"messages.{i}.tool_calls", json.dumps(message.tool_calls, ensure_ascii=False)))
            if isinstance(message.content, str):
                found.append((f"messages.{i}.content", message.content))
            for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
                if isinstance(part, TextPart):
                    found.append((f"messages.{i}.content.{j}.text", part.text))
        return found


# Fields; between them, pydantic names the branches of unions.
_PLACES = {name for model in (ChatRequest, Message, TextPart, ImagePart, ImageUrl) for name in model.model_fields}


def read(body: bytes) -> ChatRequest:
    """Read a request's body.

    Raises:
        RequestError: if it is not JSON, or not a request for a chat completion.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}", hint='{"messages": [...]}') from None
    if not isinstance(data, dict):
        raise RequestError("the body is JSON, but no object", hint='{"messages": [...]}')
    try:
        return ChatRequest.model_validate(data)
    except ValidationError as error:
        # Of the branches of a union, the one that got furthest is what the client meant.
        worst = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
        param = _place(worst["loc"], worst["type"] == "extra_forbidden")
        fault = "not a field that is taken here" if worst["type"] == "extra_forbidden" else worst["msg"]
        raise RequestError(f"{param}: {fault}", param=param) from None


def _place(loc: tuple[int | str, ...], unknown: bool) -> str:
    """Where in a request an error is, without the branches of unions that pydantic names in between."""
    found: list[str] = []
    for i, place in enumerate(loc):
        tag = i > 0 and isinstance(loc[i - 1], int) and place in ("text", "image_url")
        if isinstance(place, int) or (place in _PLACES and not tag) or (unknown and i == len(loc) - 1):
            found.append(str(place))
    return ".".join(found)
