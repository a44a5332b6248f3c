"""``foveate flops``: the arithmetic of a prompt under a plan, part by part, beside the uncompressed model."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from .run import _plan, question_inputs
from .tools import load, screen


def flops(
    plan: Annotated[str, typer.Option(help='A whole plan, "divprune:keep=0.25", or a JSON file.')],
    model: Annotated[str | None, typer.Argument(help="A folder, an id of a model hub, or the word testbed.")] = None,
    keep: Annotated[str | None, typer.Option(help='Budget of a plan that names none: 0.25, 64, "64/image".')] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Instead of a model, a random one of that size without its weights: llava-1.5-7b, ..."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A picture; repeat for several. Else noise.")
    ] = None,
    ask: Annotated[str, typer.Option(help="The question.")] = "What is in the picture?",
    images: Annotated[int, typer.Option(min=1, help="Pictures of noise, where none is given.")] = 1,
    text: Annotated[int, typer.Option(min=2, help="With --shape: text tokens of the prompt.")] = 64,
    device: Annotated[str, typer.Option(help="Of a model: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of a model: auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Plain data on standard output.")] = False,
) -> None:
    """Count the FLOPs (2 x multiply-adds) of a prompt and one decoding step, with and without compression."""
    from ..errors import UnsupportedError

    chosen = _plan(None, keep, plan, None)
    if (model is None) == (shape is None):
        raise UnsupportedError("say either a model or --shape", hint="foveate flops --shape llava-1.5-7b --plan ...")
    if shape is not None and image:
        raise UnsupportedError("a shape without weights sees nothing in a picture", hint="leave out --image")
    from ..bench import flops as counting
    from ..bench import hollow

    processor = None
    if shape is not None:
        found, inputs = hollow.shape(shape, images, text)
    else:
        assert model is not None
        found, processor = load(model, device, dtype)
        inputs = _inputs(found, processor, image or [], images, ask)
    counted = counting.count(found, inputs, chosen, processor=processor)
    result = {
        "model": model or shape,
        "weights": shape is None,
        "pictures": [str(path) for path in image or []] or f"noise, {images}",
        **counted.to_dict(),
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _show(result)


def _inputs(model: Any, processor: Any, paths: list[Path], images: int, question: str) -> dict[str, Any]:
    """A prompt of pictures, or of noise, and a question."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    from ..bench.runner import prepared
    from ..errors import UnsupportedError

    draw, pictures = np.random.default_rng(0), []
    for path in paths:
        try:
            pictures.append(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        except UnidentifiedImageError as error:
            raise UnsupportedError(f"{path} is not a picture that Pillow can read") from error
    if not paths:
        pictures = [Image.fromarray(draw.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for _ in range(images)]
    return prepared(model, question_inputs(processor, pictures, question))


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    from ..bench.flops import PARTS

    out, stock = screen(), result["uncompressed"]
    table = Table(title=f"{result['model']}{'' if result['weights'] else ', without its weights'}: {result['plan']}")
    table.add_column("part")
    for name in ("GFLOPs", "share", "uncompressed", "share", "ratio"):
        table.add_column(name, justify="right")

    def add(name: str, mine: float, other: float, end: bool = False) -> None:
        shares = [f"{100 * one / all['total']:.1f} %" for one, all in ((mine, result), (other, stock))]
        ratio = f"{mine / other:.3f}" if other else ""
        table.add_row(name, f"{mine / 1e9:,.3f}", shares[0], f"{other / 1e9:,.3f}", shares[1], ratio, end_section=end)

    depth = len(result["layers"])
    words = {"layers": f"{depth} decoder layers", "method": "choosing", "head": "logits of the last position"}
    for name in PARTS:
        mine, other = (sum(one[name]) if name == "layers" else one[name] for one in (result, stock))
        add(words.get(name, name), mine, other, name == PARTS[-1])
    add("prefill", result["prefill"], stock["prefill"])
    add("one decoding step", result["decode"], stock["decode"], True)
    add("total", result["total"], stock["total"])
    out.print(table)
    out.print(
        f"columns in the decoder layers: {_columns(result['columns'])}; uncompressed: {_columns(stock['columns'])}"
    )
    out.print("FLOPs = 2 x multiply-adds of products and convolutions; attention as the full rectangle, masked or not")
    if isinstance(result["pictures"], str):
        out.print(
            f"pictures: {result['pictures']}; a method whose counts depend on the picture keeps what it would of it"
        )


def _columns(counts: list[int]) -> str:
    """Runs of equal numbers, with the layers they stand for."""
    told, first = [], 0
    for count, same in groupby(counts):
        last = first + len(list(same)) - 1
        told.append(f"{count} ({first}-{last})" if last > first else f"{count} ({first})")
        first = last + 1
    return ", ".join(told)
