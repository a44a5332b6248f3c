"""GemFilter (arXiv:2409.17422): early layers already find the tokens that the answer needs, so let them choose the prompt.

The first layers run on the whole prompt. At one of them the last token's query meets all keys: dot products, added up over
heads and averaged over five neighbours, rank the tokens, text and picture alike. The model then starts again on the best.

What is odd: dot products are neither scaled nor put through a softmax, so heads with long queries and keys decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..entries import Entries
from ..method import Card, RerunMethod
from ..parts.pace import before, check_spots
from ..parts.score import known
from ..parts.select import top


@dataclass(frozen=True)
class GemFilter(RerunMethod):
    """Run the first layers, keep the k tokens that the last one points at there, and start again on these.

    Attributes:
        at_layer: the layer that is looked at, or a share of the depth below 1.0.
        kernel: neighbours, odd, over which scores are averaged; 1 for none.
    """

    card = Card(
        name="gemfilter",
        title="Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
        paper="arXiv:2409.17422",
        code="https://github.com/SalesforceAIResearch/GemFilter",
        licence="Apache-2.0",
        stages=("layers",),
        needs=("query",),
        guidance="question",
        budget="entries",
        touches="all",
        positions="contiguous",
        mechanism="attention",
        differences=(
            "Made for text; here pictures are part of the prompt. Their features are those of the first run, not encoded "
            "again. Newline tokens of a picture follow the line they end, and do not compete.",
            "The last token of the prompt always stays, and of every picture at least one.",
            'Kept tokens keep their positions unless the plan says positions="contiguous", as the authors do.',
            "The layer is a share of the depth: 13 of 32 in the paper's Llama 3.1.",
        ),
    )

    at_layer: float = 13 / 32
    kernel: int = 5

    def __post_init__(self) -> None:
        check_spots("at_layer", self.at_layer)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} is not an odd number")

    def layer(self, depth: int) -> int:
        return before((self.at_layer,), depth, 0)[0]

    def score(self, entries: Entries) -> Tensor:
        """(n,) pooled dot products of the last query with all keys, added up over heads."""
        keys, query = entries.keys.float(), entries.need("query")[0].float()  # (h, n, c), (heads, c)
        each = query.unflatten(0, (len(keys), -1)).sum(1)  # heads that share a key head add up
        value = known((keys @ each[..., None])[..., 0].sum(0))
        return nn.functional.avg_pool1d(value[None, None], self.kernel, stride=1, padding=self.kernel // 2)[0, 0]

    def __call__(self, entries: Entries) -> Tensor:
        score = self.score(entries)
        score[-1] = torch.inf
        return top(score, entries.k)
