"""What a prompt costs in arithmetic: the vision tower, the connector, the language model's layers, and choosing.

One FLOP is one multiplication or one addition: all numbers here are 2 x multiply-adds, of matrix products and convolutions
alone, as torch's own counter has them. Norms, softmax, gathers and sorting are left out; so is what a method does without
a product, or in NumPy, or in a decomposition such as an SVD.

The model's own part is arithmetic on sizes: while a prompt runs, every linear layer tells how many rows it got, every
attention how many queries and keys, and their weights say the rest. So methods whose counts depend on the picture, steps
inside the tower and layers that run on different columns are all counted as they ran, and so are kernels that torch's
counter does not know. Attention is the full rectangle of queries and keys, as dense kernels compute it and as torch counts
it, masked or not: a kernel that skips the upper half of causal attention does about half of that part. Choosing is what
torch's counter sees while the steps of the plan are at work: between blocks and layers, before the language model, and
where attention is read again.

A random stock model of a published size, without its weights, serves where the real one cannot be loaded: :func:`shape`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..attach import compress
from ..families import Family, adapt
from ..families.wrapped import unwrapped
from ..plan import Plan
from ..stages import tap
from .hollow import Hollow, HollowTable

PARTS = ("tower", "connector", "layers", "head", "method")  # of a prefill


@dataclass(frozen=True)
class Flops:
    """FLOPs (2 x multiply-adds) of one prompt and one decoding step; of a batch, padding included.

    Attributes:
        plan: its text, or "" for the uncompressed model.
        tower: the vision tower up to its last block, whether that one is used or not.
        connector: from there to the language model, and whatever else of the model works on features.
        layers: each decoder layer of the prefill.
        head: logits of the last position.
        method: choosing.
        decode: layers and head for one more token.
        columns: of the batch that ran in each decoder layer of the prefill.
        stock: the same for the uncompressed model, or None if this is it.
    """

    plan: str
    tower: int
    connector: int
    layers: tuple[int, ...]
    head: int
    method: int
    decode: int
    columns: tuple[int, ...]
    stock: Flops | None = field(default=None, repr=False)

    @property
    def prefill(self) -> int:
        """From pixels to the first token."""
        return sum(self.part(name) for name in PARTS)

    @property
    def total(self) -> int:
        """The prompt and one decoding step."""
        return self.prefill + self.decode

    @property
    def ratio(self) -> float:
        """Total over the uncompressed model's; 1.0 for itself."""
        return 1.0 if self.stock is None else self.total / self.stock.total

    def part(self, name: str) -> int:
        """One of :data:`PARTS`, the layers together."""
        return sum(self.layers) if name == "layers" else getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        found = {name: getattr(self, name) for name in ("plan", *PARTS, "decode", "prefill", "total", "ratio")}
        found |= {"layers": list(self.layers), "columns": list(self.columns)}
        return found if self.stock is None else found | {"uncompressed": self.stock.to_dict()}


def count(
    model: Any, inputs: dict[str, Any], plan: object = None, *, processor: Any = None, stock: Flops | None = None
) -> Flops:
    """Run a prompt and one decoding step, and count them.

    Args:
        model: as for :func:`foveate.compress`, with no run attached, and with nobody else at work on it meanwhile.
        inputs: of ``generate``, on the model's device.
        plan: as for :func:`foveate.compress`; None for the uncompressed model.
        processor: see :func:`foveate.compress`.
        stock: the count without a plan on the same inputs, if it is known; else it is made.

    Raises:
        UnsupportedError: if the model cannot be compressed this way, or parts of it are not found.
    """
    if plan is None:
        return _count(model, inputs, None, processor)
    plan = Plan.of(plan)
    return _count(model, inputs, plan, processor, stock or count(model, inputs))


def _count(model: Any, inputs: dict[str, Any], plan: Plan | None, processor: Any, stock: Flops | None = None) -> Flops:
    inner, modules = unwrapped(model)
    meter = _Meter(adapt(inner), inner, modules)
    with ExitStack() as stack:
        stack.enter_context(meter.outside())
        stack.enter_context(nullcontext() if plan is None else compress(model, plan, processor=processor))
        stack.enter_context(meter.inside())
        stack.enter_context(torch.no_grad())
        stack.enter_context(meter.counter)
        # Two tokens: the prefill gives the first, a decoding step the second.
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=1)
    depth = range(len(meter.layers))
    return Flops(
        plan="" if plan is None else str(plan),
        tower=2 * meter.macs["tower"],
        connector=2 * meter.macs["connector"],
        layers=tuple(2 * meter.macs[i] for i in depth),
        head=2 * meter.macs["head"],
        method=meter.method,
        decode=2 * meter.macs["decode"],
        columns=tuple(meter.columns[i] for i in depth),
        stock=stock,
    )


class _Meter:
    """Adds up multiply-adds by part while a model runs.

    A region is one of the library's hooks at work: what is between one of ours before it and one after it. Within a region
    the model's modules belong to the method (a layer's first projections, run ahead of their turn).
    """

    def __init__(self, family: Family, model: nn.Module, modules: list[nn.Module]) -> None:
        self.family, self.modules = family, modules
        self.layers, self.blocks = family.layers(), list(family.blocks())
        self.decoder: Any = model.get_decoder()  # type: ignore[operator]
        self.counter = FlopCounterMode(display=False, custom_mapping=unknown_to_torch())
        self.macs: Counter[str | int] = Counter()
        self.columns: dict[int, int] = {}
        self.method = 0
        self.calls = 0  # of the language model
        self.nested = 0
        self.connecting = False  # the tower's last block has run
        self._region: tuple[object, int] | None = None
        # What is in neither the tower, the layers nor the head stands between the tower and the language model.
        self.part: dict[nn.Module, str | int] = dict.fromkeys(model.modules(), "connector")
        self.part |= dict.fromkeys(family.tower().modules(), "tower")
        for i, layer in enumerate(self.layers):
            self.part |= dict.fromkeys(layer.modules(), i)
        self.part |= dict.fromkeys(model.get_output_embeddings().modules(), "head")  # type: ignore[operator]

    # -- hooks -----------------------------------------------------------------------------------------------------

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Hooks before those of a run."""
        with ExitStack() as stack:
            for module in (*self.modules, *self.layers, *self.blocks):
                stack.callback(module.register_forward_pre_hook(lambda m, args: self._begin(m)).remove)
            yield

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Hooks after those of a run."""
        with ExitStack() as stack:
            for module in (*self.modules, *self.layers, *self.blocks):
                stack.callback(module.register_forward_pre_hook(lambda m, args: self._end(m)).remove)
            stack.callback(self.decoder.register_forward_pre_hook(self._called).remove)
            stack.callback(self.family.tower().register_forward_pre_hook(self._looking).remove)
            stack.callback(self.blocks[-1].register_forward_hook(self._looked).remove)
            attentions = [self.family.layer_attention(i) for i in range(len(self.layers))]
            for module in (*attentions, *(self.family.attention(i) for i in range(len(self.blocks)))):
                stack.callback(tap.tap(module, lambda m, *given: self._begin(m)))
                readers = tap._readers[module]
                readers.insert(0, readers.pop())  # before the run's
                stack.callback(tap.tap(module, self._attended))
                if module in tap._instead:
                    stack.callback(tap.instead(module, self._changed(module, tap._instead[module])))
            for module in self.part:
                if (rule := _rule(module)) is not None:
                    stack.callback(module.register_forward_hook(self._through(rule)).remove)
            yield

    def _begin(self, owner: object) -> None:
        if self._region is None:
            self._region = owner, self.counter.get_total_flops()
        elif self._region[0] is owner:
            self.nested += 1  # a method runs the model itself

    def _end(self, owner: object) -> None:
        if self._region is not None and self._region[0] is owner:
            if self.nested:
                self.nested -= 1
                return
            self.method += self.counter.get_total_flops() - self._region[1]
            self._region = None

    def _called(self, *_: Any) -> None:
        self.calls += self._region is None

    def _looking(self, *_: Any) -> None:
        self.connecting = False

    def _looked(self, *_: Any) -> None:
        self.connecting = True

    # -- the model's own -------------------------------------------------------------------------------------------

    def _through(self, rule: _Rule) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(args[0], Tensor):
                self._add(module, rule(module, args, output))

        return hook

    def _attended(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> None:
        """Two products: queries with keys, and what comes of that with values."""
        self._end(module)
        part = self.part[module]
        if isinstance(part, int) and self._region is None and self.calls < 2:
            self.columns[part] = query.shape[2]
        if module in tap._instead:
            return  # what is really multiplied is counted there
        batch, heads, queries, width = query.shape
        pairs = batch * queries * key.shape[2]
        if isinstance(borders := kwargs.get("cu_seq_lens_q"), Tensor):  # flash kernels keep packed sequences apart
            others = kwargs.get("cu_seq_lens_k")
            lengths = borders.diff().long()
            pairs = int((lengths * (lengths if others is None else others.diff().long())).sum())
        self._add(module, heads * pairs * (width + kwargs["value"].shape[3]))

    def _changed(self, module: nn.Module, attend: tap.Attend) -> tap.Attend:
        """Attention of which a method leaves out something: by torch's counter."""

        def counted(*args: Any) -> tuple[Tensor, Tensor | None]:
            before = self.counter.get_total_flops()
            out = attend(*args)
            self._add(module, (self.counter.get_total_flops() - before) // 2)
            return out

        return counted

    def _add(self, module: nn.Module, macs: int) -> None:
        if self._region is not None:
            self.method += 2 * macs * isinstance(module, Hollow)  # torch's counter has all others
            return
        part = self.part[module]
        if self.calls > 1:
            part = "decode"
        elif part == "tower" and self.connecting:  # mergers that are modules of the tower
            part = "connector"
        self.macs[part] += macs


def unknown_to_torch() -> dict[Any, Any]:
    """Products that torch's counter has no formula for, as its ``custom_mapping``: attention on a CPU, and with vectors."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def vector(one: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(one)

    aten = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu: attention, aten.mv: vector, aten.dot: vector}


# -- modules -----------------------------------------------------------------------------------------------------------

_Rule = Callable[[Any, tuple, Any], int]
EXPERTS = ("gate_up_proj", "down_proj")  # (experts, in, out), or (experts, out, in)
BESIDE = "mm_input_projection_weight"  # Gemma 3 multiplies by a bare parameter, after pooling


def _rule(module: nn.Module) -> _Rule | None:
    """How to count a module's own product, or None if it has none."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return lambda m, args, output: output.numel() // m.out_channels * m.weight.numel()
    if isinstance(module, (nn.Embedding, HollowTable)):  # of soft tokens; of ids it is a look-up
        return lambda m, args, _: _rows(args[0]) * m.weight.numel() if args[0].is_floating_point() else 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        if any(hasattr(child, "in_features") for child in module.children()):
            return None  # an adapter around the linear layers that count
        return lambda m, args, _: _rows(args[0]) * m.in_features * m.out_features
    own = dict(module.named_parameters(recurse=False))
    if set(EXPERTS) <= own.keys() and all(own[name].ndim == 3 for name in EXPERTS):
        return _experts
    if BESIDE in own:
        return lambda m, _, output: _rows(output) * getattr(m, BESIDE).numel()
    if "weight" in own and own["weight"].ndim == 2:  # a router
        return lambda m, args, _: _rows(args[0]) * m.weight.numel()
    return None


def _experts(module: nn.Module, args: tuple, output: Any) -> int:
    """Each row through as many experts as its router chose; where rows were repeated for each expert, through one."""
    chosen = next((x for x in args[1:] if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point()), None)
    rows = _rows(args[0]) if chosen is None else chosen.numel()
    return rows * sum(getattr(module, name)[0].numel() for name in EXPERTS)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
