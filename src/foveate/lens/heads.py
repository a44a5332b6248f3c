"""Which heads of the language model look at pictures: what the method `fewer_efforts` has to be told of a model.

As the authors of arXiv:2410.06169 do it: in each head, the attention that all tokens pay to images over the attention they
pay to text. A head looks at pictures if that is above a threshold in enough of the samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..families import adapt


def ratios(model: Any, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """(samples, layers, heads) attention paid to images over attention paid to text.

    Args:
        model: a vision-language model with eager attention, which alone gives its maps.
        batches: arguments of its forward. Prompts without images are left out.

    Raises:
        UnsupportedError: if the model gives no maps, or no prompt has an image.
    """
    family, found = adapt(model), list[Tensor]()
    for batch in batches:
        with torch.no_grad():
            maps = model(**batch, output_attentions=True).attentions
        if not maps or any(one is None for one in maps):
            raise UnsupportedError("the model gives no attention maps", hint='attn_implementation="eager"')
        image = family.placeholders(batch["input_ids"], batch)
        mask = batch.get("attention_mask")
        valid = torch.ones_like(image) if mask is None else mask.bool()
        for row in image.any(1).nonzero()[:, 0].tolist():
            paid = torch.stack([one[row][:, valid[row]].sum(1) for one in maps])  # (layers, heads, columns)
            found.append(paid[..., image[row]].sum(-1) / paid[..., valid[row] & ~image[row]].sum(-1))
    if not found:
        raise UnsupportedError("no prompt has an image", hint="batches as the model's forward takes them")
    return torch.stack(found)


def looking_heads(measured: Tensor, keep: float, votes: float = 0.4, spare: int = 2) -> tuple[tuple[int, ...], ...]:
    """The heads of each layer that look at pictures, as the option ``heads`` of `fewer_efforts` wants them.

    Args:
        measured: (samples, layers, heads), see :func:`ratios`.
        keep: share of all heads to keep; the threshold follows from it. Those of spared layers come on top.
        votes: share of the samples in which a head has to be above the threshold.
        spare: layers at the beginning that keep all their heads.
    """
    # A head is above the threshold in more than that share of the samples exactly if this quantile of its own is.
    level = measured.float().sort(dim=0, descending=True).values[int(votes * len(measured))]  # (layers, heads)
    count = max(1, round(keep * level.numel()))
    best = level.flatten().sort(descending=True, stable=True).indices[:count]
    stays = torch.zeros(level.numel(), dtype=torch.bool).index_fill(0, best.cpu(), True).view_as(level)
    stays[:spare] = True
    return tuple(tuple(row.nonzero()[:, 0].tolist()) for row in stays)
