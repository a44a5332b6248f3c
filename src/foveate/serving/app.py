"""The HTTP side: four addresses, errors in OpenAI's form, and nothing that opens what a request names.

``transformers serve`` has more addresses, among them one that loads any model by name and one that unloads them; a server
that others may reach should have neither, so the application is put together here, around its handler.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import FoveateError, KeepError, PlanError, UnsupportedError
from .chat import Chat, Stream
from .limits import RequestError
from .request import read
from .turn import Gone

ADDRESSES = ("POST /v1/chat/completions", "GET /v1/models", "GET /health", "GET /metrics")
GONE = 499  # as nginx counts clients that left; nobody reads it


def application(chat: Chat, api_key: str | None = None) -> FastAPI:
    """An ASGI application that serves a model.

    Args:
        chat: answers requests.
        api_key: if given, requests under /v1 need it as a bearer token.
    """
    app = FastAPI(title="Foveate", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    flights = 0

    @app.exception_handler(FoveateError)
    async def refused(request: Request, error: FoveateError) -> Response:
        return _error(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: {error.detail}"
        return _error(RequestError(what, status=error.status_code, hint=", ".join(ADDRESSES)))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # The server's log has the traceback; clients need not know what the server is made of.
        return _answer(500, f"the server failed: {type(error).__name__}", "server_error", None)

    def admit(request: Request) -> None:
        if api_key is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
                raise RequestError("this server needs its key", status=401, hint="Authorization: Bearer KEY")

    def land() -> None:
        nonlocal flights
        flights -= 1
        chat.metrics.in_flight.set(flights)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        nonlocal flights
        status = 500
        try:
            admit(request)
            if flights >= chat.limits.in_flight:
                raise RequestError(f"{flights} requests are waiting already", status=503, hint="again in a moment")
            flights += 1
            chat.metrics.in_flight.set(flights)
            response: Response | None = None
            try:
                response = await _answered(chat, request)
            finally:
                if isinstance(response, Stream):
                    response.ended.append(land)
                else:
                    land()
            status = response.status_code
            return response
        except FoveateError as error:
            status = _status(error)
            raise
        finally:
            chat.metrics.requests.labels(str(status)).inc()

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        admit(request)
        model = {"id": chat.name, "object": "model", "created": started, "owned_by": "foveate"}
        return {"object": "list", "data": [model | {"foveate": chat.menu.to_dict()}]}

    @app.get("/health")
    async def health() -> Response:
        state = {"status": "ok" if chat.alive else "the model's thread has ended", "model": chat.name}
        return JSONResponse(state | {"in_flight": flights}, 200 if chat.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(chat.metrics.page(), media_type="text/plain; version=0.0.4")

    return app


def serve(chat: Chat, host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None) -> None:
    """Warm up, and serve until the process is told to stop.

    Raises:
        FoveateError: if a plan does not fit the model.
    """
    import uvicorn

    asyncio.run(chat.warm_up())
    uvicorn.run(application(chat, api_key), host=host, port=port, log_level="warning", access_log=False)


async def _answered(chat: Chat, request: Request) -> Response:
    """Read a request and answer it; stop the model if the client goes."""
    try:
        body = await _body(request, chat.limits.body_bytes)
    except ClientDisconnect:
        return Response(status_code=GONE)
    asked = await asyncio.to_thread(read, body)
    turn = chat.turn(asked)

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        turn.gone.set()

    listener = asyncio.create_task(listen())
    try:
        return await chat.answer(asked, turn, f"chatcmpl-{uuid.uuid4().hex}")
    except Gone:
        return Response(status_code=GONE)
    finally:
        listener.cancel()


async def _body(request: Request, most: int) -> bytes:
    """The whole body, read no further than allowed."""
    too_large = RequestError(f"the body has more than {most:,} bytes", status=413, hint="smaller pictures, or fewer")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise too_large
    return bytes(found)


def _status(error: FoveateError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 400 if isinstance(error, (KeepError, PlanError, UnsupportedError)) else 500


def _error(error: FoveateError) -> Response:
    what = error.what + (f" (try: {error.hint})" if error.hint else "")
    status = _status(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return _answer(status, what, kind, getattr(error, "param", None))


def _answer(status: int, message: str, kind: str, param: str | None) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = {"error": {"message": message, "type": kind, "param": param, "code": None}}
    return JSONResponse(body, status, headers=headers)
