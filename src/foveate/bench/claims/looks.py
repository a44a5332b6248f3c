"""Looking while the stock model runs a prompt: rows of attention, whole maps, and states, layer by layer.

Kernels stay as they are; rows are worked out again from queries and keys, as methods that look at attention do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UnsupportedError, require
from ...families import Family, adapt
from ...stages import tap
from ..runner import prefill


@dataclass
class Seen:
    """What one prefill of a batch showed.

    Attributes:
        family: of the model.
        image: (b, n) which columns are visual tokens; valid: (b, n) which are no padding.
        layers: query, key and scale of each decoder layer's attention.
        blocks: the same of each tower block that is used.
        states: (before, after) each decoder layer, (b, n, d).
    """

    family: Family
    image: Tensor
    valid: Tensor
    layers: dict[int, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    blocks: dict[int, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def asks(self, row: int) -> Tensor:
        """(q,) columns of the text after the last picture of a prompt."""
        after = self.valid[row] & ~self.image[row]
        after[: int(self.image[row].nonzero()[-1]) + 1] = False
        return after.nonzero()[:, 0]

    def paid(self, layer: int, row: int, columns: Tensor) -> Tensor:
        """(heads, q, n) attention of some columns of a prompt, over all that they see."""
        query, key, scale = self.layers[layer]
        mask = self.valid[row] & (torch.arange(key.shape[2], device=key.device) <= columns[:, None])
        return tap.rows(query[row : row + 1, :, columns], key[row : row + 1], scale, mask[None, None])[0]

    def cls(self, block: int) -> Tensor:
        """(pictures, tokens) attention of the CLS token in a tower block, mean over heads."""
        query, key, scale = self.blocks[block]
        at = self.family.cls_row()
        if at is None:
            raise UnsupportedError(f"the tower of {type(self.family.model).__name__} has no CLS token")
        weights = tap.rows(query[:, :, at : at + 1], key, scale)[:, :, 0].mean(1)
        return torch.cat([weights[:, :at], weights[:, at + 1 :]], 1)

    def alike(self, row: int) -> np.ndarray:
        """(layers, layers) rank correlation of the attention that the text after a picture pays to its tokens."""
        asks, image = self.asks(row), self.image[row]
        return _ranks([self.paid(i, row, asks).mean((0, 1))[image] for i in sorted(self.layers)])

    def blocks_alike(self, picture: int) -> np.ndarray:
        """(blocks, blocks) the same of the CLS token in the tower."""
        return _ranks([self.cls(i)[picture] for i in sorted(self.blocks)])

    def mass(self, row: int) -> tuple[list[float], list[float]]:
        """Attention that the text after a picture pays to text, and to pictures, by layer; mean over heads."""
        asks, image = self.asks(row), self.image[row]
        paid = [self.paid(i, row, asks).mean((0, 1)) for i in sorted(self.layers)]
        return [float(one[~image].sum()) for one in paid], [float(one[image].sum()) for one in paid]

    def steady(self, row: int) -> tuple[list[float], list[float]]:
        """Cosine of states before and after each layer: mean over text, and over visual tokens."""
        text, image = self.valid[row] & ~self.image[row], self.image[row]
        cosines = [nn.functional.cosine_similarity(a[row].float(), b[row].float(), dim=-1) for a, b in self._ordered()]
        return [float(c[text].mean()) for c in cosines], [float(c[image].mean()) for c in cosines]

    def rank(self, row: int) -> list[float]:
        """Effective rank of each layer's attention maps, mean over heads: exponential of their spectrum's entropy."""
        columns, found = self.valid[row].nonzero()[:, 0], []
        for i in sorted(self.layers):
            values = torch.linalg.svdvals(self.paid(i, row, columns)[..., columns])
            share = values / values.sum(-1, keepdim=True)
            found.append(float(torch.special.entr(share).sum(-1).exp().mean()))
        return found

    def _ordered(self) -> list[tuple[Tensor, Tensor]]:
        return [self.states[i] for i in sorted(self.states)]


def _ranks(rows: list[Tensor]) -> np.ndarray:
    found = require("scipy.stats", "report").spearmanr(torch.stack(rows).float().cpu().numpy(), axis=1).statistic
    return np.asarray(found) if np.ndim(found) == 2 else np.array([[1, found], [found, 1]], dtype=float)


@torch.inference_mode()
def seen(model: Any, fed: dict[str, Any]) -> Seen:
    """Run the prompt of a batch on the stock model, and look.

    Args:
        fed: what :func:`foveate.bench.runner.prepared` made, pixels among it.
    """
    family = adapt(model)
    found = Seen(family, family.placeholders(fed["input_ids"], fed), fed["attention_mask"].bool())

    def reader(shelf: dict[int, tuple[Tensor, Tensor, float]], number: int) -> Any:
        def read(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> None:
            shelf[number] = query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5

        return read

    def keep(number: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            found.states[number] = _first(args, kwargs), output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for i, layer in enumerate(family.layers()):
            stack.callback(tap.tap(family.layer_attention(i), reader(found.layers, i)))
            stack.callback(layer.register_forward_hook(keep(i), with_kwargs=True).remove)
        for i in range(family.last_block() + 1):
            stack.callback(tap.tap(family.attention(i), reader(found.blocks, i)))
        prefill(model, fed)
    return found


@contextmanager
def skipping(model: Any, layer: int, image: Tensor) -> Iterator[None]:
    """Let visual tokens pass a decoder layer unchanged while a prompt runs; text still reads them there.

    Args:
        image: (b, n) the prompt's visual tokens.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        before, after = _first(args, kwargs), output[0] if isinstance(output, tuple) else output
        if after.shape[1] != image.shape[1]:
            return None  # a step of decoding
        mixed = torch.where(image[..., None], before, after)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = adapt(model).layers()[layer].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _first(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
