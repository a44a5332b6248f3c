"""How alike a picture's tokens and the text are, layer by layer: the implicit alignment score of arXiv:2405.16700."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..families import adapt


def alignment(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Cosine of the mean image token and the mean text token, as they enter each layer and leave the last.

    Args:
        model: a vision-language model.
        batch: arguments of its forward, prompts with images among them; others are left out.

    Returns:
        (prompts with images, layers + 1), row by row.
    """
    family = adapt(model)
    image = family.placeholders(batch["input_ids"], batch)
    mask = batch.get("attention_mask")
    text = ~image if mask is None else mask.bool() & ~image
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    rows = image.any(1).nonzero()[:, 0].tolist()
    found = [
        nn.functional.cosine_similarity(
            one[row][image[row]].float().mean(0), one[row][text[row]].float().mean(0), dim=0
        )
        for row in rows
        for one in states
    ]
    return torch.stack(found).view(len(rows), -1)
