"""``foveate bench select``: what choosing costs by itself, next to one n x n x d matrix product.

Every method gets the same synthetic picture, in one process and on one thread: n tokens of width d in tiles of 24 x 24, with
whatever extras its card asks for. Reading those extras from a model is not part of it, nor is moving tokens afterwards.

The *product* is ``x @ x.T``, what a method pays that looks at all pairs; it runs in the same rounds. The share of a 7B prefill
is an estimate: the method's time over what the language model of LLaVA-1.5-7B would take on n + 64 tokens if all its
multiplications ran as fast as the product did.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ... import registry
from ...errors import UnsupportedError
from ...method import CacheMethod, Method, Recipe, RerunMethod, TowerMethod
from ...tokens import TOKEN_AXIS, Extra, Reduction, View
from ..environment import environment
from .timing import Job, interleaved

SIDE = 24  # of a tile
DEPTH, HEADS, KEYS, WORDS, PIXELS, TEXT = 23, 16, 1024, 16, 3 * 14 * 14, 64  # as LLaVA-1.5's tower has them
VOCABULARY, LAYERS, WIDTH_7B, INNER_7B = 32000, 32, 4096, 11008
START, END = "<!-- select-table:start -->", "<!-- select-table:end -->"


def picture(n: int, k: int, d: int, seed: int = 0) -> View:
    """A random picture of n tokens in tiles of 24 x 24, the first the overview, with every extra that a card can name.

    Raises:
        UnsupportedError: if n is not a number of tiles.
    """
    if n < 1 or n % SIDE**2:
        raise UnsupportedError(f"{n} tokens", hint=f"a multiple of {SIDE**2}, the tokens of one tile")
    draw = torch.Generator().manual_seed(seed)
    index = torch.arange(n)
    tiles, place = n // SIDE**2, index % SIDE**2

    def rows(width: int) -> Extra:
        return Extra(torch.randn(n, width, generator=draw))

    def attention() -> Extra:
        return Extra(
            torch.randn(HEADS, n, generator=draw).mul_(2).softmax(-1), DEPTH - 1, "CLS row over the tower's tokens"
        )

    extras = {name: attention() for name in ("attention", "early", "value_attention")}
    extras |= {"keys": rows(KEYS), "values": rows(KEYS), "pixels": rows(PIXELS)}
    extras["question"] = Extra(torch.randn(WORDS, d, generator=draw))
    extras["vocabulary"] = Extra(torch.randn(VOCABULARY, d, generator=draw))
    if tiles > 1:
        across = -(-(tiles - 1) // 2)
        cut = [
            (i % across / across, i // across / 2, (i % across + 1) / across, (i // across + 1) / 2)
            for i in range(tiles - 1)
        ]
        extras["boxes"] = Extra(torch.tensor([(0.0, 0.0, 1.0, 1.0), *cut]))
    # Groups of like tokens, as pictures have them.
    x = torch.randn(n, d, generator=draw) + 2 * torch.randn(n // 16, d, generator=draw)[place // 24 % (n // 16)]
    extras["first"], extras["layer_keys"] = Extra(x), Extra(torch.randn(n, d, generator=draw))
    extras["first_text"] = extras["text"] = extras["text_keys"] = Extra(torch.randn(WORDS, d, generator=draw))
    extras["last_row"] = extras["ahead_row"] = extras["attention"]
    extras["text_rows"] = Extra(torch.randn(HEADS, WORDS, n, generator=draw).softmax(-1))
    extras["text_text"] = Extra(torch.randn(HEADS, WORDS, WORDS, generator=draw).softmax(-1))
    places: dict[str, Any] = {"tile": index // SIDE**2, "row": place // SIDE, "col": place % SIDE}
    return View(x, k, extras=extras, layer=LAYERS // 2, depth=LAYERS, entered=n, **places)


def measure_select(
    methods: Sequence[str] | None = None,
    sizes: Sequence[int] = (576, 2880),
    d: int = 1024,
    keep: float = 0.1,
    repeats: int = 9,
    tick: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Time methods by themselves.

    Args:
        methods: names; all that are known when None.
        sizes: tokens of a picture, multiples of 576.
        d: width of features.
        keep: share to keep, rounded down, one at least.
        repeats: rounds that count, all methods taking turns.
        tick: called after each timed call.

    Returns:
        Plain data: for each method and size ``ms`` with ``quartiles``, ``products`` (times one n x n x d product),
        ``share_of_7b_prefill`` and ``peak_bytes``; or ``refused``, why it cannot be measured so.
    """
    classes = registry.classes()
    names = list(methods or classes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for n in sizes for row in _at(n, names, d, keep, repeats, tick)]
        where = environment()
    finally:
        torch.set_num_threads(threads)
    return {"kind": "select", "environment": where, "d": d, "keep": keep, "repeats": repeats, "rows": rows}


def steps(methods: Sequence[str] | None, sizes: Sequence[int], repeats: int) -> int:
    """How often :func:`measure_select` will tick."""
    not_timed = (Recipe, CacheMethod, RerunMethod)
    classes = [registry.get(name) for name in methods or registry.classes()]
    names = [cls.card.name for cls in classes if cls.card.stages[0] != "input" and not issubclass(cls, not_timed)]
    return len(sizes) * (len(names) + 1) * (repeats + 1)


def _at(
    n: int, names: list[str], d: int, keep: float, repeats: int, tick: Callable[[], None] | None
) -> Iterator[dict[str, Any]]:
    view = picture(n, max(1, int(keep * n + 1e-9)), d)
    x = view.x
    work: dict[str, Callable[[], Any]] = {"": lambda: x @ x.mT}
    refused = {}
    for name in names:
        made: Any = registry.get(name)()
        if isinstance(made, Recipe):
            refused[name] = "is made of several methods"
        elif made.card.stages[0] == "input":
            refused[name] = "works on pixels and chooses nothing"
        elif isinstance(made, (CacheMethod, RerunMethod)):
            refused[name] = "chooses among keys, not tokens: `foveate bench inside` times it in a model"
        else:
            work[name] = _calls(made, view)
    found = interleaved({name: _job(one) for name, one in work.items()}, repeats, tick=tick)
    product = found[""]
    rate = 2 * n * n * d / product.median()
    for name in names:
        row: dict[str, Any] = {"method": name, "n": n, "k": view.k}
        if name in refused:
            yield row | {"refused": refused[name]}
            continue
        times = found[name]
        low, _, high = statistics.quantiles(times.wall, n=4, method="inclusive") if repeats > 1 else times.wall * 3
        yield row | {
            "ms": 1e3 * times.median(),
            "quartiles": [1e3 * low, 1e3 * high],
            "product_ms": 1e3 * product.median(),
            "products": times.over(product),
            "share_of_7b_prefill": times.median() * rate / prefill_flops(n + TEXT),
            "peak_bytes": peak(work[name]),
        }


def _job(work: Callable[[], Any]) -> Job:
    @contextmanager
    def go() -> Iterator[Callable[[], Any]]:
        yield work

    return go


def _calls(method: Method, view: View) -> Callable[[], Any]:
    """One call of a method; of a tower method a call at every stop, on what the stop before left."""
    given = [name for name in (*type(method).card.needs, "boxes") if name in view.extras]
    view = replace(view, extras={name: view.extras[name] for name in given})
    if not isinstance(method, TowerMethod):
        return partial(method, view)
    stops, views = list(method.stops(DEPTH)), []
    for number in range(len(stops)):
        here = replace(view, left=len(stops) - 1 - number)
        here = replace(here, marks=method.carry(here))
        views.append(here)
        view = _reduced(here, method(here))
    return lambda: [method(one) for one in views]


def _reduced(view: View, answer: Reduction) -> View:
    """The view that the next stop would see, but for its features, which stay as they are."""
    answer = answer.sorted()
    at = answer.anchor

    def less(name: str, extra: Extra) -> Extra:
        axis = TOKEN_AXIS.get(name)
        return extra if axis is None else Extra(extra.value.index_select(axis, at), extra.layer, extra.domain)

    return View(
        answer.apply(view.x), view.k, tile=view.tile[at], row=view.row[at], col=view.col[at],
        size=answer.sizes(view.size), extras={name: less(name, extra) for name, extra in view.extras.items()},
    )  # fmt: skip


def prefill_flops(length: int) -> float:
    """Floating-point operations of LLaVA-1.5-7B's language model on a prompt, two per multiplication."""
    per_token = 4 * WIDTH_7B**2 + 3 * WIDTH_7B * INNER_7B
    return 2.0 * LAYERS * (length * per_token + 2 * length**2 * WIDTH_7B)


class _Live(TorchDispatchMode):
    """Bytes of tensors that were made inside and are alive between operations."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.given: set[int] = set()  # storages that came from outside; views of them are nothing new
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages(args):
            if storage._cdata not in self.alive:
                self.given.add(storage._cdata)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in self.given:
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: found for key, found in self.alive.items() if not found[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def _storages(values: Any) -> list[torch.UntypedStorage]:
    flat = values if isinstance(values, (tuple, list)) else (values,)
    inner = [one for value in flat for one in (value if isinstance(value, (tuple, list)) else (value,))]
    return [one.untyped_storage() for one in inner if isinstance(one, Tensor)]


def peak(work: Callable[[], Any]) -> int:
    """Most bytes of tensors at a time that a call makes and that outlive an operation; not what an operation uses inside."""
    with _Live() as live:
        work()
    return live.peak


def markdown(result: dict[str, Any]) -> str:
    """A table of a result of :func:`measure_select`, the cheapest at the largest size first."""
    sizes = sorted({row["n"] for row in result["rows"]})
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        by.setdefault(row["method"], {})[row["n"]] = row
    where = result["environment"]
    lines = [
        f"Random features of width {result['d']}, {100 * result['keep']:g} % kept, one thread of a {where['processor']}, "
        f"torch {where['torch']}, median of {result['repeats']} rounds. Made by `foveate bench select`.",
        "",
        "| method |"
        + "".join(f" ms at {n} | products |" for n in sizes)
        + f" of a 7B prefill at {sizes[-1]} | memory, MB |",
        "|---|" + "--:|--:|" * len(sizes) + "--:|--:|",
    ]
    fine = [name for name in by if "ms" in by[name][sizes[-1]]]
    for name in sorted(fine, key=lambda name: by[name][sizes[-1]]["ms"]):
        last = by[name][sizes[-1]]
        cells = "".join(f" {by[name][n]['ms']:.2f} | {by[name][n]['products']:.2f} |" for n in sizes)
        lines.append(f"| {name} |{cells} {100 * last['share_of_7b_prefill']:.3f} % | {last['peak_bytes'] / 1e6:.1f} |")
    lines += [f"\n`{name}` is not measured: it {by[name][sizes[-1]]['refused']}." for name in by if name not in fine]
    return "\n".join(lines)
