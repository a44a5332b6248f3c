"""``foveate run``: one question about your own pictures, answered without and with compression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .tools import keep_of, load, plan_of, screen

if TYPE_CHECKING:
    from PIL.Image import Image


def run(
    model: Annotated[str, typer.Argument(help="A folder, an id of a model hub, or the word testbed.")],
    ask: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="A picture; repeat for several.")],
    method: Annotated[str | None, typer.Option(help="Name of a method; needs --keep.")] = None,
    keep: Annotated[str | None, typer.Option(help='0.25, 64, "64/image", "2048/total", "=128/image".')] = None,
    plan: Annotated[
        str | None, typer.Option(help='Instead: a whole plan, "divprune:keep=0.25", or a JSON file.')
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="original (default), contiguous, preserved or preserved:4.")
    ] = None,
    save_view: Annotated[Path | None, typer.Option(help="Write the pictures with kept tokens lit.")] = None,
    save_classes: Annotated[
        Path | None,
        typer.Option(
            help="Write the pictures with alive tokens lit, dead ones dimmed and sinks tinted (EmbedLens), by the words "
            "of the plan's embedlens step if it has one."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    repeats: Annotated[int, typer.Option(min=0, help="Timed rounds; 0 leaves times out.")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Plain data on standard output.")] = False,
) -> None:
    """Ask one question about pictures, with and without compression."""
    chosen = _plan(method, keep, plan, positions)
    from PIL import Image, ImageOps, UnidentifiedImageError

    from ..errors import UnsupportedError

    pictures = []
    for path in image:
        try:
            pictures.append(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        except UnidentifiedImageError as error:
            raise UnsupportedError(f"{path} is not a picture that Pillow can read") from error
    found, processor = load(model, device, dtype)
    result, views = compare(found, processor, chosen, pictures, ask, max_new_tokens, repeats)
    result = {"model": model, **result}
    if save_view is not None:
        _save(views, save_view)
        result["view"] = str(save_view)
    if save_classes is not None:
        result["classes"], drawn = classes(found, processor, chosen, pictures, ask)
        _save(drawn, save_classes)
        result["classes_view"] = str(save_classes)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    _show(result)


def _plan(method: str | None, keep: str | None, plan: str | None, positions: str | None) -> Any:
    """The plan that the options describe, read before anything heavy is loaded."""
    from ..errors import PlanError
    from ..plan import Plan

    if (method is None) == (plan is None):
        raise PlanError(
            "say either --method or --plan", hint='--method divprune --keep 0.25, or --plan "divprune:keep=0.25"'
        )
    budget = None if keep is None else keep_of(keep)
    return Plan.of(method or plan_of(plan or ""), budget, positions)


def compare(
    model: Any,
    processor: Any,
    plan: Any,
    pictures: list[Image],
    question: str,
    max_new_tokens: int = 64,
    repeats: int = 3,
) -> tuple[dict[str, Any], list[Image]]:
    """Both answers to one question, tokens and time ratios, and the pictures with kept tokens lit."""
    import torch

    from .. import lens
    from ..attach import compress
    from ..bench.runner import prepared

    batch = question_inputs(processor, pictures, question)
    fed = prepared(model, batch)

    def answer() -> str:
        with torch.inference_mode():
            out = model.generate(**fed, max_new_tokens=max_new_tokens, do_sample=False)
        return processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    stock = answer()
    with compress(model, plan, processor=processor) as attached:
        compressed = answer()
        report = attached.report
    assert report is not None  # there was a picture
    result: dict[str, Any] = {
        "plan": str(plan),
        "positions": plan.positions,
        "family": attached.family.name,
        "question": question,
        "uncompressed": stock,
        "compressed": compressed,
        "same": stock == compressed,
        "report": report.to_dict(),
    }
    if repeats:
        result["time"] = _times(model, processor, plan, fed, repeats)
    shown = lens.seen(pictures, batch, processor)
    views = [lens.picture(shown[i.ordinal], i, plan=plan, size=384) for i in report.images]
    return result, views


def classes(
    model: Any, processor: Any, plan: Any, pictures: list[Image], question: str
) -> tuple[list[dict[str, Any]], list[Image]]:
    """Class of every token of each picture (alive, dead or sink) with the classes' shares, and the pictures with these."""
    from .. import lens
    from ..bench.runner import prepared

    batch = question_inputs(processor, pictures, question)
    words = next((step.method for step in plan.steps if step.method.name == "embedlens"), None)
    options = {} if words is None else {name: getattr(words, name) for name in ("sink", "dead", "nearest")}
    found = lens.label(model, prepared(model, batch), **options)
    shown = lens.seen(pictures, batch, processor)
    told = [
        {"picture": one.report.ordinal, "shares": one.shares(), "labels": [lens.NAMES[i] for i in one.labels.tolist()]}
        for one in found
    ]
    return told, [lens.drawn(shown[one.report.ordinal], one, size=384) for one in found]


def question_inputs(processor: Any, pictures: list[Image], question: str) -> Any:
    """A batch of one prompt: the pictures, then the question, in the processor's chat format if it has one."""
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
    if getattr(processor, "chat_template", None):
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = getattr(processor, "image_token", "<image>") * len(pictures) + question
    return processor(images=[pictures], text=[text], return_tensors="pt")


def _times(model: Any, processor: Any, plan: Any, fed: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Time to the first token, vision tower included, as a ratio to the uncompressed model; runs take turns."""
    from contextlib import contextmanager, nullcontext

    from ..attach import compress
    from ..bench.runner import prefill
    from ..bench.times.timing import interleaved

    chosen: list[float] = []

    @contextmanager
    def attached():
        with compress(model, plan, processor=processor) as run:
            yield lambda: prefill(model, fed)
            if run.report is not None:
                chosen.append(run.report.seconds)

    found = interleaved(
        {"stock": lambda: nullcontext(lambda: prefill(model, fed)), "compressed": attached},
        repeats,
        device=str(next(model.parameters()).device),
    )
    stock = found["stock"].median()
    return {
        "first_token": found["compressed"].over(found["stock"]),
        "choosing": sorted(chosen)[len(chosen) // 2] / stock,
        "uncompressed_seconds": stock,
        "rounds": repeats,
    }


def _save(views: list[Image], path: Path) -> None:
    from .. import lens

    path.parent.mkdir(parents=True, exist_ok=True)
    (views[0] if len(views) == 1 else lens.strip(views)).save(path)


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    report, out = result["report"], screen()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("question", result["question"])
    table.add_row("uncompressed", result["uncompressed"])
    table.add_row("compressed", result["compressed"], style=None if result["same"] else "bold")
    table.add_row("plan", f"{result['plan']} ({result['positions']} positions, family {result['family']})")
    each = ", ".join(f"{i['tokens_in']} to {i['tokens_out']}" for i in report["images"])
    table.add_row("visual tokens", each)
    table.add_row("prompt", f"{report['sequence_in']} to {report['sequence_out']} tokens")
    if "time" in result:
        time = result["time"]
        share = f"{time['first_token']:.2f} of uncompressed ({time['uncompressed_seconds']:.3g} s)"
        table.add_row("first token", f"{share}, choosing {time['choosing']:.3f}; median of {time['rounds']}")
    if "view" in result:
        table.add_row("view", result["view"])
    for one in result.get("classes", ()):
        shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in one["shares"].items())
        table.add_row(f"picture {one['picture']}", f"{shares}, in {result['classes_view']}")
    for note in report["notes"]:
        table.add_row("note", note)
    out.print(table)
