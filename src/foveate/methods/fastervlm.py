"""FasterVLM (arXiv:2412.01818): the tower's CLS token already knows which patches matter.

Attention between text and image inside the language model is a poor guide (shifted towards the end of the image, spread
thin); the CLS row of the tower is a sharp one, and is there before the language model starts.

What is odd: nothing else happens. One row of one layer, averaged over heads, and the best k stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method import Card, ScoreMethod
from ..tokens import View


@dataclass(frozen=True)
class FasterVLM(ScoreMethod):
    """Keep the tokens that the CLS token attends to most; without a CLS token, those that receive most attention.

    ``view.extras["attention"].domain`` says which of the two it was.
    """

    card = Card(
        name="fastervlm",
        title="[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
        paper="arXiv:2412.01818",
        code="https://github.com/Theia-4869/FasterVLM",
        licence="Apache-2.0",
        needs=("attention",),
        mechanism="attention",
        differences=(
            "With several tiles the authors keep the same number in every tile; here the budget is the image's, and "
            "tiles compete for it.",
            "Towers without a CLS token are not in the paper: the score is then the attention that a token receives "
            "on average.",
            "The authors' code switches newline tokens off; here they stay structure, as the model was trained.",
        ),
    )

    def score(self, view: View) -> Tensor:
        return view.need("attention").float().mean(0)  # (h, n) -> (n,)
