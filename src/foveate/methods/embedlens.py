"""EmbedLens (arXiv:2603.00510): tokens that say nothing about the picture are known by the words they resemble.

Every visual token has nearest words in the language model's vocabulary. *Sink* tokens are nearly the same vector in every
picture, *dead* ones form the largest cluster and resemble meaningless pieces of words; the others are *alive*. A model has
its own few words for each of the first two: a token that has one of them among its nearest is of that class. Sinks go first,
then the dead, then of the living those that resemble any word least.

What is odd: the words are constants of a model. Where they are not given, the word that is nearest to most tokens of the
picture is taken for the mark of the dead, which is wrong for a picture that is mostly one thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method import Card, Method
from ..parts.select import top
from ..parts.similarity import unit
from ..tokens import Reduction, View

ALIVE, DEAD, SINK = 0, 1, 2


@dataclass(frozen=True)
class EmbedLens(Method):
    """Drop sink tokens, then dead ones, then those that resemble any word least.

    Attributes:
        sink: ids of the words that mark sinks, such as (1141, 26673) for LLaVA-1.5-7B; `foveate.lens.find_words` finds them.
        dead: ids of the words that mark dead tokens, such as (30296,) for LLaVA-1.5-7B.
        nearest: how many of a token's nearest words are looked at.
    """

    card = Card(
        name="embedlens",
        title="What Do Visual Tokens Really Encode? Uncovering Sparsity and Redundancy in Multimodal Large Language Models",
        paper="arXiv:2603.00510",
        code="https://github.com/EIT-NLP/EmbedLens",
        needs=("vocabulary",),
        mechanism="similarity",
        positions="original",
        differences=(
            "The budget decides how many tokens go; the authors drop every token of the classes that are asked for.",
            "A token that is marked as both counts as a sink.",
            "Re-interpretation: the order within a class. Tokens that resemble a word least go first.",
            "Re-interpretation: without ids, the commonest nearest word of a picture marks its dead tokens, and there are no "
            "sinks.",
            "Skipping sublayers and injecting tokens at a middle layer are other parts of the paper.",
        ),
    )

    sink: tuple[int, ...] = ()
    dead: tuple[int, ...] = ()
    nearest: int = 3

    def __post_init__(self) -> None:
        for name in ("sink", "dead"):
            ids = getattr(self, name)
            if not isinstance(ids, tuple) or any(not isinstance(i, int) or i < 0 for i in ids):
                raise ValueError(f"{name}={ids!r} is not a tuple of token ids, such as (30296,)")
        if self.nearest < 1:
            raise ValueError(f"nearest={self.nearest} is not a number of words, 1 or more")

    def classes(self, words: Tensor) -> Tensor:
        """(n,) ALIVE, DEAD or SINK of tokens by the ids of their nearest words (n, nearest)."""
        dead = self.dead
        if not dead and not self.sink:
            dead = (int(torch.bincount(words[:, 0]).argmax()),)
        found = torch.full_like(words[:, 0], ALIVE)
        for label, ids in ((DEAD, dead), (SINK, self.sink)):
            found[torch.isin(words, torch.tensor(ids, dtype=words.dtype, device=words.device)).any(1)] = label
        return found

    def look(self, view: View) -> tuple[Tensor, Tensor]:
        """Cosines (n, nearest), highest first, and ids (n, nearest) of the words that each token resembles most."""
        return nearest_words(view.x, view.need("vocabulary"), self.nearest)

    def __call__(self, view: View) -> Reduction:
        cosine, words = self.look(view)
        return Reduction.drop(top(cosine[:, 0] - 4 * self.classes(words), view.k), view.n)


def nearest_words(x: Tensor, vocabulary: Tensor, count: int, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """Cosines (n, count), highest first, and ids (n, count) of the words (v, d) that tokens (n, d) resemble most.

    rows: words to compare with at a time, so that n x v is never formed.
    """
    count, units = min(count, len(vocabulary)), unit(x)[0]
    best = units.new_full((len(x), 0), 0.0)
    ids = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(vocabulary), rows):
        some = unit(vocabulary[start : start + rows])[0].to(units.dtype)
        new = (units @ some.mT).topk(min(count, len(some)), dim=1)
        best, ids = torch.cat([best, new.values], 1), torch.cat([ids, new.indices + start], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :count]
        best, ids = best.gather(1, order), ids.gather(1, order)
    return best, ids
