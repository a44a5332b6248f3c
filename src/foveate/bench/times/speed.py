"""``foveate bench speed``: what hooks and choosing cost, next to the fastest that dropping tokens could be.

The limit is known: the same stock model on a prompt that physically holds only the kept tokens (the *oracle*). A random
stock LLaVA is built in the size asked for; its vision tower is tiny and stays out of all times, since features are
encoded once and passed in. Ratios only: every round runs all variants in turns on the same machine.

A method between the language model's layers has another limit, the *ideal*: each layer of the stock model on a prompt of the
length that runs there, their times added up. (Counted arithmetic would not do: kernels skip half of causal attention, and
are less quick on short prompts.)

At keep=1.0 the language model gets the very arguments that it gets without a run, so all that a run can cost lies before
it. That part is timed by itself, too: ``added`` is a prompt under the run minus one without, both stopped where the
language model begins. The ratio of whole prefills holds the noise of the machine besides; ``control`` says how much that
is: the uncompressed model over itself, measured like any other variant.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...attach import compress
from ...errors import UnsupportedError
from ...method import Method
from ...plan import Plan, Step
from ...tokens import Reduction, View
from ..environment import environment
from ..runner import Entry, encoded, prefill
from .timing import Job, Times, interleaved

PER_IMAGE, SIDE, PATCH = 576, 24, 4
IMAGE, TEXT = 4, 16  # token ids: the placeholder, and the first that is ordinary text


@dataclass(frozen=True)
class Shape:
    """The random model's size. ``mlp`` defaults to LLaMA's ratio of 2.75 in whole multiples of 64."""

    layers: int = 12
    width: int = 1024
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 4096

    @property
    def mlp(self) -> int:
        return round(self.width * 2.75 / 64) * 64


def build(shape: Shape, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """A stock ``LlavaForConditionalGeneration`` with random weights and a vision tower that costs next to nothing."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE * PATCH,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.mlp, num_hidden_layers=shape.layers, vocab_size=shape.vocab,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, max_position_embeddings=8192,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=PER_IMAGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    return model.to(device, getattr(torch, dtype)).eval()


@dataclass(frozen=True)
class Timed(Method):
    """Another method, with a note of how long each call took."""

    inner: Method
    log: list[float]

    @property
    def card(self):  # type: ignore[override]
        return self.inner.card

    def __call__(self, view: View) -> Reduction:
        wait = torch.cuda.synchronize if view.x.is_cuda else (lambda: None)
        wait()
        start = time.perf_counter()
        answer = self.inner(view)
        wait()
        self.log.append(time.perf_counter() - start)
        return answer


def measure_speed(
    *,
    shape: Shape | None = None,
    tokens: Sequence[int] = (576, 2880),
    text: int = 64,
    keeps: Sequence[float] = (0.25, 0.1),
    methods: Sequence[str] = ("divprune", "fastervlm"),
    repeats: int = 5,
    threads: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    tick: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure overhead at keep=1.0 and prefill against the oracle.

    Args:
        shape: of the language model.
        tokens: visual tokens of a prompt; above 576 in images of 576 each.
        text: text tokens of a prompt, after the images.
        keeps: shares to keep.
        methods: names of methods.
        repeats: rounds that count; each runs every variant once.
        threads: of torch; None leaves them as they are.
        dtype, device: of the model.
        tick: called with a word on what runs, after every timed call.

    Returns:
        Plain data: ``overhead`` rows (keep=1.0 over stock) and ``prefill`` rows (against the oracle), ``environment``.

    Raises:
        UnsupportedError: if a method works before or inside the vision tower, which stays out of all times here.
    """
    for name in methods:
        if any(step.stage in ("input", "encoder") for step in Plan.of(name, keeps[0]).steps):
            raise UnsupportedError(
                f"{name} works before or inside the vision tower, which is not timed here",
                hint="foveate run or foveate demo, whose first-token times have the tower in them",
            )
    shape = shape or Shape()
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        model = build(shape, dtype, device)
        result: dict[str, Any] = {
            "bench": "speed",
            "model": {"class": type(model).__name__, "weights": "random", **vars(shape), "mlp": shape.mlp},
            "text_tokens": text,
            "repeats": repeats,
            "environment": environment(device, dtype),
            "overhead": [],
            "prefill": [],
        }
        for n in tokens:
            overhead, rows = _at(model, n, text, keeps, methods, repeats, device, tick)
            result["overhead"].append(overhead)
            result["prefill"] += rows
    finally:
        torch.set_num_threads(before)
    return result


def calls(tokens: Sequence[int], keeps: Sequence[float], methods: Sequence[str], repeats: int) -> int:
    """How often :func:`measure_speed` will tick."""
    per_size = 5 + len(keeps) * (1 + 2 * len(methods))
    return len(tokens) * per_size * (repeats + 1)  # of methods inside, as many as they have lengths instead of one


def _at(
    model: Any,
    n: int,
    text: int,
    keeps: Sequence[float],
    methods: Sequence[str],
    repeats: int,
    device: str,
    tick: Callable[[str], None] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One prompt length."""
    images = max(1, n // PER_IMAGE)
    if n % PER_IMAGE:
        raise ValueError(f"{n} visual tokens are not a number of images of {PER_IMAGE} tokens")
    plans = {(m, k): Plan.of(m, float(k)) for m in methods for k in keeps}
    inside = {key: plan for key, plan in plans.items() if plan.steps[0].stage in ("layers", "cache")}
    fed = _prompt(model, images, PER_IMAGE, text)
    pixels = torch.randn(images, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
    parameter = next(model.parameters())
    with_pixels = fed | {"pixel_values": pixels.to(parameter.device, parameter.dtype)}
    full = Plan.of(methods[0], 1.0)
    entries = [Entry(str(p), p) for p in [full, *plans.values()]]
    features = encoded(model, with_pixels, entries)

    splits: dict[str, list[tuple[float, float]]] = {}
    hooks_alone: list[float] = []  # at keep=1.0 no method is asked: all the report's seconds are the hooks'
    jobs = {
        "stock": _job(model, fed, features),
        "control": _job(model, fed, features),
        "full": _job(model, fed, features, full, hooks_alone),
        "stock|start": _stopped(model, _job(model, fed, features)),
        "full|start": _stopped(model, _job(model, fed, features, full)),
    }
    for k in keeps:
        kept = Plan.of(methods[0], float(k)).steps[0].keep.counts([PER_IMAGE])[0]  # type: ignore[union-attr]
        short = _prompt(model, images, kept, text)
        jobs[f"oracle|{k}"] = _job(model, short, _shortened(features, kept))
    lengths: dict[tuple[str, float], list[int]] = {}
    for (m, k), plan in plans.items():
        jobs[f"{m}|{k}"] = _job(model, fed, features, plan)
        if (m, k) in inside:
            lengths[m, k] = _lengths(model, fed, features, plan)
            for length in set(lengths[m, k]):
                jobs.setdefault(f"length|{length}", _job(model, _words(model, length), None))
            continue
        splits[f"{m}|{k}"] = []
        jobs[f"{m}|{k}|split"] = _split_job(model, fed, features, plan, splits[f"{m}|{k}"])
    found = interleaved(jobs, repeats, device=device, tick=None if tick is None else lambda: tick(f"{n} tokens"))

    stock = found["stock"]
    hooks = statistics.median(hooks_alone[1:]) / stock.median()
    overhead = {
        "tokens": n,
        **_ratio("ratio", found["full"], stock),
        **_ratio("control", found["control"], stock),
        "hooks_of_stock": hooks,
        "added_of_stock": (found["full|start"].median() - found["stock|start"].median()) / stock.median(),
    }
    rows = []
    for m, k in inside:
        mine, depth = found[f"{m}|{k}"], len(lengths[m, k])
        parts = [found[f"length|{length}"] for length in lengths[m, k]]
        ideal = Times([sum(x) / depth for x in zip(*(p.wall for p in parts), strict=True)],
                      [sum(x) / depth for x in zip(*(p.cpu for p in parts), strict=True)])  # fmt: skip
        rows.append(
            {"tokens": n, "method": m, "keep": k, "layers": lengths[m, k]}
            | _ratio("of_stock", mine, stock)
            | {"ideal_of_stock": ideal.over(stock)}
            | _ratio("efficiency", ideal, mine)
            | {"seconds": {"stock": stock.median(), "ideal": ideal.median(), "compressed": mine.median()}}
        )
    for m, k in (key for key in plans if key not in inside):
        mine, oracle = found[f"{m}|{k}"], found[f"oracle|{k}"]
        choosing, hooks = (statistics.median(part) for part in zip(*splits[f"{m}|{k}"][1:], strict=True))
        row = {
            "tokens": n,
            "method": m,
            "keep": k,
            **_ratio("of_stock", mine, stock),
            "oracle_of_stock": oracle.over(stock),
            **_ratio("efficiency", oracle, mine),
            "choosing_of_stock": choosing / stock.median(),
            "hooks_of_stock": hooks / stock.median(),
            "choosing_of_saved": choosing / max(1e-9, stock.median() - oracle.median()),
            "seconds": {"stock": stock.median(), "oracle": oracle.median(), "compressed": mine.median()},
        }
        if device.startswith("cuda"):
            row["peak_memory_of_oracle"] = _peak(jobs[f"{m}|{k}"]) / _peak(jobs[f"oracle|{k}"])
        rows.append(row)
    return overhead, rows


def _ratio(name: str, one: Times, other: Times) -> dict[str, Any]:
    low, high = one.spread(other)
    return {name: one.over(other), f"{name}_quartiles": [low, high], f"{name}_cpu": one.over(other, "cpu")}


def _prompt(model: Any, images: int, per_image: int, text: int) -> dict[str, Any]:
    """One prompt: bos, images of ``per_image`` placeholders, text."""
    words = torch.randint(
        TEXT, model.config.text_config.vocab_size, (text - 1,), generator=torch.Generator().manual_seed(0)
    )
    ids = torch.tensor([1, *[IMAGE] * (images * per_image), *words.tolist()])[None].to(next(model.parameters()).device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _shortened(features: Any, kept: int) -> Any:
    """The encoder's output with the first ``kept`` rows of every image, as if it had made no others."""
    short = copy.copy(features)
    short["pooler_output"] = [rows[:kept].clone() for rows in features["pooler_output"]]
    return short


def _job(
    model: Any, fed: dict[str, Any], features: Any, plan: Plan | None = None, notes: list[float] | None = None
) -> Job:
    """A prefill, stock or under a plan; ``notes`` gets the seconds that the report gives."""

    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        with nullcontext() if plan is None else compress(model, plan) as run:
            yield lambda: prefill(model, fed, features)
            if notes is not None and run is not None and run.report is not None:
                notes.append(run.report.seconds)

    return go


def _lengths(model: Any, fed: dict[str, Any], features: Any, plan: Plan) -> list[int]:
    """How many columns run in each layer of a prompt."""
    seen: list[int] = []
    with compress(model, plan), ExitStack() as stack:
        for layer in model.get_decoder().layers:  # after the run's own hooks, which shorten the states
            look = lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[1])  # noqa: E731
            stack.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        prefill(model, fed, features)
    return seen


def _words(model: Any, length: int) -> dict[str, Any]:
    """A prompt of text."""
    ids = torch.full((1, length), TEXT, device=next(model.parameters()).device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class _Enough(Exception):  # noqa: N818 - not an error
    """Ends a prefill where the language model would begin."""


def _stopped(model: Any, job: Job) -> Job:
    """The same prefill as far as the first layer of the language model."""

    def stop(*_: Any) -> None:
        raise _Enough

    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        with job() as work:

            def start() -> None:
                with suppress(_Enough):
                    work()

            handle = model.get_decoder().register_forward_pre_hook(stop)
            try:
                yield start
            finally:
                handle.remove()

    return go


def _split_job(model: Any, fed: dict[str, Any], features: Any, plan: Plan, splits: list[tuple[float, float]]) -> Job:
    """Notes (seconds inside the method, seconds of everything else before the language model), and stops there."""

    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        log: list[float] = []
        steps: list[Step] = [replace(s, method=Timed(s.method, log)) for s in plan.steps]
        seconds: list[float] = []
        job = _job(model, fed, features, replace(plan, steps=tuple(steps)), seconds)
        with _stopped(model, job)() as work:
            yield work
        splits.append((sum(log), seconds[-1] - sum(log)))

    return go


def _peak(job: Job) -> int:
    """Peak GPU memory of one call above what was in use before it, in bytes."""
    with job() as work:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
