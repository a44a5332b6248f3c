"""Methods that exist to test how methods are attached: one of each kind, simple enough to be beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.method import Card, Method, ScoreMethod
from foveate.tokens import Reduction, View


@dataclass(frozen=True)
class Drop(ScoreMethod):
    """Scores that look random and depend on nothing but the token's place in the image."""

    card = Card(name="drop", title="probe: drop")

    def score(self, view: View) -> Tensor:
        return (torch.arange(view.n, device=view.x.device).double() * 12.9898).sin().mul(43758.5453).frac().float()


@dataclass(frozen=True)
class Merge(Method):
    """Neighbours in raster order averaged: pairs, at half the tokens."""

    card = Card(name="merge", title="probe: merge")

    def __call__(self, view: View) -> Reduction:
        assign = torch.arange(view.n, device=view.x.device) * view.k // view.n
        first = torch.cat([assign.new_ones(1, dtype=torch.bool), assign[1:] != assign[:-1]])
        return Reduction.groups(assign, first.nonzero()[:, 0])


@dataclass(frozen=True)
class Blocks(Method):
    """Square blocks of each tile's grid averaged; the smallest blocks that fit the budget."""

    card = Card(name="blocks", title="probe: pool", count="grid")

    def __call__(self, view: View) -> Reduction:
        for side in range(1, view.n + 1):
            key = (view.tile * 1000 + view.row // side) * 1000 + view.col // side
            blocks, assign = key.unique(return_inverse=True)
            if len(blocks) <= view.k:
                break
        token = torch.arange(view.n, device=key.device)
        first = torch.full((len(blocks),), view.n, device=key.device).scatter_reduce(0, assign, token, "amin")
        return Reduction.groups(assign, first)


@dataclass(frozen=True)
class Guided(ScoreMethod):
    """Likeness to the mean word of the question."""

    card = Card(name="guided", title="probe: text-guided", needs=("question",), guidance="question")

    def score(self, view: View) -> Tensor:
        return torch.cosine_similarity(view.x.float(), view.need("question").float().mean(0)[None])


@dataclass(frozen=True)
class Tower(ScoreMethod):
    """Attention in the vision tower."""

    card = Card(name="tower", title="probe: tower-scored", needs=("attention",), mechanism="attention")

    def score(self, view: View) -> Tensor:
        return view.need("attention").mean(0)


@dataclass(frozen=True)
class Identity(Method):
    """Keeps everything, whatever it is asked: forces the whole path without changing anything."""

    card = Card(name="identity", title="probe: identity", count="content")

    def __call__(self, view: View) -> Reduction:
        return Reduction.identity(view.n, view.x.device)


class BrokenError(Exception):
    """What a probe raises."""


@dataclass(frozen=True)
class Raises(Method):
    """Fails on every image but the first of a prompt, so that work is under way when it does."""

    card = Card(name="raises", title="probe: a method that fails")

    def __call__(self, view: View) -> Reduction:
        if view.ordinal:
            raise BrokenError("inside a method")
        return Reduction.drop(torch.arange(view.k, device=view.x.device), view.n)


DROPS = {"drop": Drop(), "guided": Guided(), "tower": Tower()}
MERGES = {"merge": Merge(), "blocks": Blocks()}
PROBES = DROPS | MERGES
