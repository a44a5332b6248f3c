"""TextMonkey (arXiv:2403.04473): of tokens that resemble one another, the last one stays.

A token counts as redundant by its highest cosine to any *later* token. The least redundant are kept.

What is odd: only later tokens are looked at, so that a copy goes and its last occurrence stays; the very last token has no
later one and is always kept. Where all tokens resemble one another, the end of the picture wins.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..method import Card, Method
from ..parts.select import top
from ..parts.similarity import nearest_later
from ..tokens import Reduction, View


@dataclass(frozen=True)
class TextMonkey(Method):
    """Keep the tokens that least resemble any later one."""

    card = Card(
        name="textmonkey",
        title="TextMonkey: An OCR-Free Large Multimodal Model for Understanding Document",
        paper="arXiv:2403.04473",
        code="https://github.com/Yuliang-Liu/Monkey",
        mechanism="similarity",
        differences=(
            "The filter alone. In the paper the kept tokens are queries of a cross-attention over all tokens, which is trained "
            "with the model; here nothing is trained and kept tokens stay as they are.",
            "Cosines are taken a block of rows at a time, to later tokens only; the authors' code forms them all, in both "
            "directions. Which tokens stay is the same.",
        ),
    )

    def __call__(self, view: View) -> Reduction:
        return Reduction.drop(top(-nearest_later(view.x), view.k), view.n)
