"""Chat completions: the handler of ``transformers serve``, with pictures that are checked and prompts that are compressed.

Templates, generation settings, streaming, tool calls and reasoning are the handler's. What is added sits around it: pictures
are opened here and not by the processor, the model it sees is a :class:`~foveate.serving.turn.Turn`, and usage counts the
tokens that the language model got.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.responses import Response, StreamingResponse
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState

from ..errors import FoveateError
from .limits import Limits, RequestError
from .menu import Menu
from .metrics import Metrics
from .pictures import opened
from .request import ChatRequest
from .turn import Turn

# Characters of text for each token of the context: far more than any tokenizer needs, and soon counted.
PER_TOKEN = 32


class Stream(StreamingResponse):
    """Events for a client.

    Args:
        events: lines of server-sent events.
        ended: called when nothing more is sent, be it that the client left before the first event.
    """

    def __init__(self, events: AsyncGenerator[Any], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.ended = [ended]

    async def __call__(self, *asgi: Any) -> None:
        # Not in the generator: one that was never asked for its first event never comes to its end.
        try:
            await super().__call__(*asgi)
        finally:
            for each in self.ended:
                each()


class Chat(ChatCompletionHandler):
    """Answers chat completions on one model.

    Args:
        name: of the model, as clients call it.
        model, processor: as loaded by transformers, with no run attached.
        menu: plans and budgets that a request may ask for.
        limits: what a request may ask of the server.
        metrics: where to count.
    """

    def __init__(
        self, name: str, model: Any, processor: Any, menu: Menu, limits: Limits, metrics: Metrics | None = None
    ) -> None:
        super().__init__(model_manager=None, generation_state=GenerationState())
        self.name, self.model, self.processor = name, model, processor
        self.menu, self.limits, self.metrics = menu, limits, metrics or Metrics()
        text = model.config.get_text_config()
        self.context = limits.context or getattr(text, "max_position_embeddings", None)
        self._manager = GenerateManager()
        self._turns: dict[str, Turn] = {}
        # One prompt is made ready at a time: fast tokenizers refuse to be used by two threads, and pictures are large.
        self._room = asyncio.Lock()
        self._tools = "tools" in inspect.signature(super()._streaming).parameters
        tokens = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio", "boi", "eoi"))
        self._reserved = [token for token in tokens if isinstance(token, str) and token]

    @property
    def alive(self) -> bool:
        """Whether the thread that runs the model does."""
        return self._manager._thread._thread.is_alive()

    # -- one request ---------------------------------------------------------------------------------------------------

    async def answer(self, asked: ChatRequest, turn: Turn, request_id: str) -> Response:
        """Answer a request.

        Args:
            asked: as it was read.
            turn: of this request, from :meth:`turn`.
            request_id: unique among those in flight.

        Raises:
            RequestError: what the request names cannot be used.
            FoveateError: the plan cannot be run on this prompt.
        """
        config = self._config(asked)
        async with self._room:
            inputs = await asyncio.to_thread(self._inputs, asked)
        self._fit(inputs["input_ids"].shape[-1], config, asked)
        call = {
            "request_id": request_id,
            "model": turn,
            "processor": self.processor,
            "model_id": self.name,
            "inputs": inputs,
            "gen_config": config,
            "gen_manager": self._manager,
        } | ({"tools": asked.tools} if self._tools else {})
        self._turns[request_id] = turn
        streaming = False
        try:
            if asked.stream:
                response = await self._begun(self._streaming(**call), turn, request_id)
                streaming = True
                return response
            return await self._non_streaming(**call)
        finally:
            if not streaming:
                self._over(turn, request_id)

    def turn(self, asked: ChatRequest) -> Turn:
        """The model for one request, under the plan that it asks for.

        Raises:
            RequestError: if it asks for another model, or for what the menu does not have.
        """
        if asked.model is not None and asked.model != self.name:
            raise RequestError(
                f"the model {asked.model!r} is not served here", status=404, param="model", hint=self.name
            )
        return Turn(self.model, self.processor, self.menu.chosen(asked.foveate), asked.seed, self.metrics)

    async def warm_up(self) -> None:
        """Answer a small prompt under every plan, so that what cannot run is known before the first request.

        Raises:
            FoveateError: if a plan does not fit the model, or its processor lacks something.
        """
        from PIL import Image

        picture = Image.new("RGB", (336, 336), "gray")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]
        inputs = await asyncio.to_thread(self._prepared, [{"role": "user", "content": content}], None)
        config = self._config(ChatRequest.model_validate({"messages": [{"role": "user"}], "max_tokens": 1}))
        for offer in self.menu.offers.values():
            turn = Turn(self.model, self.processor, offer.plan(), None, Metrics())
            await self._manager.generate_non_streaming(turn, self.processor, inputs, config, request_id="warm-up")

    # -- the prompt ----------------------------------------------------------------------------------------------------

    def _inputs(self, asked: ChatRequest) -> Any:
        """What the processor makes of a request, on the model's device."""
        texts = asked.texts()
        for param, text in texts:
            for token in self._reserved:
                if token in text:
                    raise RequestError(
                        f"the text holds {token!r}, by which this model marks where a picture stands",
                        param=param,
                        hint="a part of type image_url where a picture belongs, and other words",
                    )
        letters = sum(len(text) for _, text in texts)
        if self.context and letters > PER_TOKEN * self.context:
            raise self._too_long(f"the text has {letters:,} characters")
        pictures = iter(opened(asked.images(), self.limits))
        messages = []
        for message in asked.messages:
            said: dict[str, Any] = {"role": message.role, "content": []}
            for extra in ("name", "tool_call_id"):
                if (value := getattr(message, extra)) is not None:
                    said[extra] = value
            if message.tool_calls is not None:
                said["tool_calls"] = [_with_arguments(call) for call in message.tool_calls]
            parts = message.content or []
            for part in parts if isinstance(parts, list) else [parts]:
                if isinstance(part, str):
                    said["content"].append({"type": "text", "text": part})
                elif part.type == "text":
                    said["content"].append({"type": "text", "text": part.text})
                else:
                    said["content"].append({"type": "image", "image": next(pictures)})
            messages.append(said)
        try:
            return self._prepared(messages, asked.tools)
        except FoveateError:
            raise
        except Exception as error:
            # Templates and processors raise what they like on conversations and pictures they cannot take.
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RequestError(
                f"the model's processor does not take these messages: {line}", param="messages"
            ) from error

    def _prepared(self, messages: list[dict[str, Any]], tools: Any) -> Any:
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tools=tools, return_tensors="pt", return_dict=True, tokenize=True
        )
        return inputs.to(self.model.device, self.model.dtype)

    def _config(self, asked: ChatRequest) -> Any:
        """Generation settings of a request."""
        longest = self.limits.new_tokens
        wanted = asked.max_completion_tokens or asked.max_tokens or longest
        if wanted > longest:
            raise RequestError(
                f"max_tokens={wanted}, and this server writes at most {longest}", param="max_tokens", hint=f"{longest}"
            )
        # The seed is set when the turn comes: until then, other requests would use it up.
        body = asked.model_dump(exclude_none=True, exclude={"messages", "foveate", "seed", "tools"})
        words = self.model.config.get_text_config().vocab_size
        for token in asked.logit_bias or ():
            if not token.isdecimal() or int(token) >= words:
                raise RequestError(
                    f"logit_bias names the token {token!r}", param="logit_bias", hint=f"whole numbers below {words}"
                )
        try:
            config = self._build_generation_config(
                body | {"max_completion_tokens": wanted, "max_tokens": wanted}, self.model.generation_config
            )
        except (ValueError, TypeError) as error:
            raise RequestError(f"generation settings: {error}") from None
        if asked.temperature is not None or asked.top_p is not None:
            config.do_sample = asked.temperature is None or asked.temperature > 0
        if config.pad_token_id is None:
            config.pad_token_id = _first(config.eos_token_id)
        return config

    def _fit(self, tokens: int, config: Any, asked: ChatRequest) -> None:
        """Hold prompt and answer to the context. Kept tokens keep their positions, so the whole prompt counts."""
        if not self.context:
            return
        wanted = asked.max_completion_tokens or asked.max_tokens
        if tokens + (wanted or 1) > self.context:
            more = f" and {wanted:,} are asked for" if wanted else ""
            raise self._too_long(f"the prompt has {tokens:,} tokens before compression{more}")
        config.max_new_tokens = min(config.max_new_tokens, self.context - tokens)

    def _too_long(self, what: str) -> RequestError:
        return RequestError(
            f"{what}; the model's context is {self.context:,} tokens",
            param="messages",
            hint="less text, fewer or smaller pictures, or a smaller max_tokens",
        )

    # -- the answer ----------------------------------------------------------------------------------------------------

    async def _begun(self, response: StreamingResponse, turn: Turn, request_id: str) -> Stream:
        """A stream that has its first token: what fails before that has an HTTP status of its own."""
        events: Any = response.body_iterator
        try:
            first = [await anext(events), await anext(events)]
        except StopAsyncIteration:
            first = []
        if turn.error is not None:
            await events.aclose()
            raise turn.error

        async def sent() -> AsyncGenerator[Any]:
            for event in first:
                yield event
            async for event in events:
                if turn.error is not None:
                    # The handler's own line has the error's words, and is no JSON if they have quotes.
                    fault = {"message": f"the server failed: {type(turn.error).__name__}", "type": "server_error"}
                    yield f"data: {json.dumps({'error': fault})}\n\n"
                    return
                yield event
            await asyncio.to_thread(turn.over.wait)
            yield "data: [DONE]\n\n"

        def ended() -> None:
            turn.gone.set()  # harmless after the last token; stops the model if the client went earlier
            self._over(turn, request_id)

        return Stream(sent(), ended)

    def _over(self, turn: Turn, request_id: str) -> None:
        self._turns.pop(request_id, None)
        self.metrics.written.inc(turn.written)
        if turn.error is None and turn.written:
            self.metrics.whole.observe(turn.since())
            if turn.report is not None:
                self.metrics.visual.labels("before").inc(turn.report.tokens_in)
                self.metrics.visual.labels("after").inc(turn.report.tokens_out)

    def _usage(self, request_id: str, usage: Any) -> Any:
        """Usage as the language model saw it."""
        turn = self._turns.get(request_id)
        if usage is None or turn is None:
            return usage
        report = turn.report
        told: dict[str, Any] = {"plan": str(turn.plan)}
        if report is not None:
            usage.prompt_tokens = report.sequence_out
            usage.total_tokens = report.sequence_out + usage.completion_tokens
        told |= {
            "visual_tokens_before": report.tokens_in if report else 0,
            "visual_tokens_after": report.tokens_out if report else 0,
            "visual_tokens_per_layer": round(sum(image.average for image in report.images), 2) if report else 0,
            "images": [[image.tokens_in, image.tokens_out] for image in report.images] if report else [],
        }
        usage.foveate = told
        return usage

    def _build_completion(self, request_id: str, *args: Any, usage: Any = None, **more: Any) -> dict:
        return super()._build_completion(request_id, *args, usage=self._usage(request_id, usage), **more)

    def _build_chunk_sse(self, request_id: str = "", *args: Any, usage: Any = None, **more: Any) -> str:
        return super()._build_chunk_sse(request_id, *args, usage=self._usage(request_id, usage), **more)


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call of an earlier turn; templates want its arguments as an object."""
    function = dict(call.get("function") or call)
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except ValueError as error:
            raise RequestError(f"the arguments of a tool call are not JSON: {error}", param="messages") from None
    return {**call, "function": function}


def _first(ids: Any) -> Any:
    return ids[0] if isinstance(ids, list) and ids else ids
