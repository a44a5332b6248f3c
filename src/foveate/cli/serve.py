"""``foveate serve``: a model behind OpenAI's chat completions, its pictures compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .tools import keep_of, plan_of, screen


def serve(
    model: Annotated[str, typer.Argument(help="A folder, an id of a model hub, or the word testbed.")],
    plan: Annotated[
        list[str],
        typer.Option(
            help='"divprune:keep=0.25", or a JSON file. Repeat to offer several: the first is that of requests that name none.'
        ),
    ],
    keep: Annotated[str | None, typer.Option(help="Budget of plans that have none, as 0.25 or 64/image.")] = None,
    cap: Annotated[
        str | None,
        typer.Option(
            help='The most that a request may ask for, as "50%" or "50%,256/image"; without it, its plan\'s own budget.'
        ),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="original (default), contiguous, preserved or preserved:4.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; without it, MODEL.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key: Annotated[str | None, typer.Option(envvar="FOVEATE_API_KEY", help="Clients must send it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    attention: Annotated[str | None, typer.Option(help="sdpa, flash_attention_2, ...")] = None,
    quantization: Annotated[str | None, typer.Option(help="bnb-4bit or bnb-8bit.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, at most and by default.")] = 1024,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer; without it, what the model's config says.")
    ] = None,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures of a request.")] = 16,
    max_image_bytes: Annotated[int, typer.Option(min=1, help="Of one picture's file.")] = 20_000_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of all pictures of a request.")] = 64_000_000,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Of a request.")] = 64_000_000,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests that wait or run; more are sent away.")] = 64,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Fetch pictures from example.org (https) or http://localhost:9000.")
    ] = None,
    allow_folder: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Read file:// pictures under this folder.")
    ] = None,
) -> None:
    """Serve a model as OpenAI's chat completions, its pictures compressed."""
    from ..errors import require
    from ..serving.limits import Limits
    from ..serving.menu import Menu

    menu = Menu([plan_of(one) for one in plan], None if keep is None else keep_of(keep), cap, positions)
    for module in ("fastapi", "uvicorn", "openai", "prometheus_client"):
        require(module, "serve")
    from ..serving.app import serve as run
    from ..serving.chat import Chat
    from ..serving.loading import load

    limits = Limits(
        images=max_images,
        image_bytes=max_image_bytes,
        pixels=max_pixels,
        body_bytes=max_body_bytes,
        new_tokens=max_new_tokens,
        context=context,
        in_flight=max_in_flight,
        hosts=tuple(one.lower().rstrip("/") for one in allow_host or ()),
        folders=tuple(allow_folder or ()),
    )
    folder = model
    if model == "testbed":
        from .. import testbed

        folder, dtype = str(testbed.model_path()), "float32" if dtype == "auto" else dtype
    found, processor = load(folder, device, dtype, attention, quantization)
    chat = Chat(name or model, found, processor, menu, limits)
    for offer in menu.to_dict():
        budget = f", keep {offer['keep']} (at most {', '.join(offer['cap'])})" if offer["keep"] else ""
        screen(stderr=True).print(f"plan     {offer['plan']}{budget}")
    screen(stderr=True).print(f"serving  {chat.name} at http://{host}:{port}/v1")
    run(chat, host, port, api_key)
