"""What claims need besides the grid: plans that no budget spells, and methods that only serve as controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ... import registry
from ...method import Card, LayerMethod, ScoreMethod
from ...plan import Plan
from ...routes import Route
from ...tokens import Extra, View

MERGING = ("tome", "dpcknn", "kmeans")  # methods whose tokens are mostly merged ones
NUMBERED = ("original", "contiguous", "preserved")
MERGED = 64  # tokens that they leave
GUIDED = (64, 32)  # tokens at which a method with the question meets itself without
CACHED = (64, 32)  # entries
LEFT = 64  # tokens, where "most" leave
MEANS = (0.4, 0.6)  # of the tokens over the layers, at which schedules of different shapes meet
DEGRADED = ("divprune:keep=64", "fastervlm:keep=64")
KINDS = ("blur", "noise", "jpeg", "dark")


def extra(depth: int) -> list[Plan]:
    """Plans for the extra grid. depth: layers of the language model."""
    found = [Plan.of(name, MERGED, positions=how) for name in MERGING for how in NUMBERED]
    for k in GUIDED:
        found += [
            Plan.of("cdpruner", k),
            Plan.of(blind(), k),
            Plan.of("flashvlm", k),
            Plan.of(f"flashvlm:keep={k},text=0.0"),
        ]
    found += [gone(layer) for layer in range(1, depth)]
    found += [most_gone(layer) for layer in range(1, depth)]
    found += [late(layer) for layer in range(1, depth)]
    found += [plan for mean in MEANS for plan in shapes(mean, depth).values()]
    found += [texted(k, first) for k in CACHED for first in (True, False)]
    found += [Plan.of("ima"), Plan.of("ima:interval=1")]
    return list({(str(plan), plan.positions): plan for plan in found}.values())


def gone(layer: int) -> Plan:
    """No visual token runs from a layer on."""
    return Plan.of(f"vtw:layer={layer}")


def most_gone(layer: int) -> Plan:
    """A ninth of the visual tokens of a 24 x 24 picture runs from a layer on: those that the layer before looks at most."""
    return Plan.of(f"fastv:layer={layer}", LEFT)


def late(layer: int) -> Plan:
    """The picture enters before a layer: layers before it run on text alone."""
    return Plan.of(Late(layer))


def shapes(mean: float, depth: int) -> dict[str, Plan]:
    """Schedules that run on the same number of tokens, summed over the layers, as near as their shapes come to it.

    Args:
        mean: share of the tokens, over the layers.
        depth: layers of the language model.

    Returns:
        By shape: "falling" in a straight line from all, or, where that would end below nothing, in a geometric series;
        "flat" from the second layer on, since the first has nothing to choose by; "rising": none, then all.
    """
    rest = mean * depth - 1  # of the layers after the first
    flat = [1.0] + [rest / (depth - 1)] * (depth - 1)
    low, high = 0.0, 1.0
    for _ in range(60):  # the ratio of the series, by bisection
        ratio = (low + high) / 2
        low, high = (ratio, high) if sum(ratio**i for i in range(1, depth)) < rest else (low, ratio)
    falling = [round(ratio**i, 3) for i in range(depth)]
    return {
        "falling": _shares(falling),
        "flat": _shares([round(share, 3) for share in flat]),
        "rising": late(depth - round(mean * depth)),
    }


def texted(k: int, first: bool) -> Plan:
    """A cache of k entries per head, with text first or with the same rule for all."""
    return Plan.of(f"lookm:keep={k}" + ("" if first else ",text_prior=none"))


def _shares(shares: Sequence[float]) -> Plan:
    return Plan.of({"method": "gsearch", "options": {"shares": list(shares)}})


def blind() -> Any:
    """``cdpruner`` to which all tokens are equally relevant: the same choice without the question."""
    base: Any = registry.get("cdpruner")

    @dataclass(frozen=True)
    class Blind(base):
        card = replace(base.card, name="cdpruner_without_question", needs=(), guidance="none")

        def __call__(self, view: View) -> Any:
            even = Extra(torch.ones(view.n, device=view.x.device))
            return super().__call__(replace(view, extras={**view.extras, "relevance": even}))

    return Blind()


@dataclass(frozen=True)
class Late(LayerMethod):
    """All visual tokens wait until one layer, and run from there to the end.

    Attributes:
        layer: the first layer that they run in, 1 or more.
    """

    card = Card(
        name="late",
        title="The picture enters late (baseline)",
        stages=("layers",),
        count="content",
        positions="original",
    )

    layer: int = 1

    @property
    def settled(self) -> bool:
        return True

    def stops(self, depth: int) -> Sequence[int]:
        return (0, self.layer)

    def __call__(self, view: View) -> Route:
        return Route(view.n, torch.arange(view.n if view.layer else 0, device=view.x.device))


@dataclass(frozen=True)
class Ranked(ScoreMethod):
    """Keep the tokens with the highest of scores that were made elsewhere.

    Attributes:
        scores: (n,) for each picture, in the order in which pictures are met; read once.
    """

    card = Card(name="ranked", title="By scores that are given (baseline)")

    scores: Iterator[Any] = field(default_factory=lambda: iter(()))

    def score(self, view: View) -> Any:
        return next(self.scores).to(view.x.device)
