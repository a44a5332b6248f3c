"""Which visual tokens say something: the classes of EmbedLens (arXiv:2603.00510), found, shown, and drawn on the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import registry
from ..attach import compress
from ..method import Card, Method
from ..report import ImageReport
from ..tokens import Reduction, View
from .picture import DROPPED, FED, KEPT, picture

NAMES = ("alive", "dead", "sink")  # of the labels 0, 1, 2
DRAWN = (KEPT, DROPPED, FED)  # alive as it is, dead dimmed, sinks tinted


@dataclass(frozen=True)
class Labelled:
    """The tokens of one picture.

    Attributes:
        labels: (n,) 0 alive, 1 dead, 2 sink.
        words: (n, nearest) ids of the words that each resembles most.
        cosines: (n, nearest) how much.
        features: (n, d) the tokens.
        report: where they lie.
    """

    labels: Tensor
    words: Tensor
    cosines: Tensor
    features: Tensor = field(repr=False)
    report: ImageReport = field(repr=False)

    def shares(self) -> dict[str, float]:
        """Share of each class."""
        return {name: (self.labels == i).float().mean().item() for i, name in enumerate(NAMES)}


@dataclass(frozen=True)
class _Look(Method):
    """Notes what it is shown, and keeps a single token: the prompt that follows is as short as can be."""

    card = Card(name="look", title="notes visual tokens and the vocabulary", needs=("vocabulary",))
    seen: list[View] = field(default_factory=list, compare=False)

    def __call__(self, view: View) -> Reduction:
        self.seen.append(view)
        return Reduction.drop(torch.zeros(1, dtype=torch.long, device=view.x.device), view.n)


@torch.inference_mode()
def label(
    model: Any, inputs: Mapping[str, Any], *, sink: Sequence[int] = (), dead: Sequence[int] = (), nearest: int = 3
) -> list[Labelled]:
    """Label the visual tokens of every picture of a prompt as sink, dead or alive.

    Args:
        model: a vision-language model.
        inputs: what its processor made of pictures and any question.
        sink, dead: ids of the words that mark these classes in this model; :func:`find_words` finds them. Without any, the
            commonest nearest word of a picture marks its dead tokens.
        nearest: how many of a token's nearest words are looked at.

    Returns:
        One entry per picture of more than one token, in the order of the prompt.
    """
    method: Any = registry.get("embedlens")(sink=tuple(sink), dead=tuple(dead), nearest=nearest)  # type: ignore[call-arg]
    look = _Look()
    with compress(model, look, keep="1/image") as run:
        model(**inputs)
    found = []
    reports = [one for one in run.report.images if one.tokens_in > 1] if run.report is not None else []
    for view, report in zip(look.seen, reports, strict=True):
        cosines, words = method.look(view)
        found.append(Labelled(method.classes(words).cpu(), words.cpu(), cosines.cpu(), view.x.float().cpu(), report))
    return found


def find_words(
    pictures: Sequence[Labelled], present: float = 0.9, sink: float = 0.99, dead: float = 0.9
) -> dict[str, tuple[int, ...]]:
    """The words that mark sinks and dead tokens of a model, from :func:`label` of many different pictures (32 or more).

    Tokens with the same nearest word are a cluster. One that is in nearly every picture, and whose mean is nearly the same
    vector in all, is a sink; one whose means are still very much alike is dead. The thresholds are this library's, not the
    paper's.

    Args:
        pictures: of one model.
        present: share of pictures in which a cluster has to be.
        sink, dead: mean cosine, over pairs of pictures, above which it is one.

    Returns:
        Word ids by class, those with most tokens first.
    """
    means: dict[int, list[Tensor]] = {}
    count: dict[int, int] = {}
    for one in pictures:
        for word in one.words[:, 0].unique().tolist():
            mine = one.features[one.words[:, 0] == word]
            mean = torch.nn.functional.normalize(mine, dim=1).mean(0)
            means.setdefault(word, []).append(torch.nn.functional.normalize(mean, dim=0))
            count[word] = count.get(word, 0) + len(mine)
    found: dict[str, list[int]] = {"sink": [], "dead": []}
    for word in sorted(count, key=lambda word: (-count[word], word)):
        units = torch.stack(means[word])
        if len(units) < 2 or len(units) < present * len(pictures):
            continue
        alike = (units.sum(0).square().sum() - len(units)) / (len(units) * (len(units) - 1))
        if alike > dead:
            found["sink" if alike > sink else "dead"].append(word)
    return {name: tuple(words) for name, words in found.items()}


def drawn(image: Image.Image, one: Labelled, size: int | None = None) -> Image.Image:
    """The picture with the classes on it: alive as it is, dead dimmed, sinks tinted."""
    states = np.full(len(one.report.kind), DROPPED)
    content = (one.report.kind == 0).nonzero()[:, 0].cpu().numpy()
    states[content] = np.array(DRAWN)[one.labels.numpy()]
    return picture(image, one.report, size=size, states=states)
