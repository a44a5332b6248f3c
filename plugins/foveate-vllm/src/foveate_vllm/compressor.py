"""From what vLLM's tower and connector gave for a picture to the tokens that stay, by Foveate's own connector stage.

Methods, budgets, what they see and how their answers are applied are the same code as in transformers, so that the same
tokens stay. What is particular to vLLM is where features, attention and keys are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedError
from foveate.families import Family, Layout
from foveate.plan import Plan
from foveate.stages import connector, encoder
from foveate.stages.picture import Picture, content_of
from foveate.stages.reading import SUMMED, Read, read
from foveate.tokens import Extra

Borders = Callable[[dict[str, Any]], "Tensor | None"]


class Compressor:
    """A plan on one model of vLLM.

    Args:
        plan: one that :func:`foveate_vllm.plans.check` lets pass.
        family: adapter of Foveate, around vLLM's model; its :meth:`attention` gives modules that vLLM calls with
            query, key and value.
        borders: from the encoder's arguments to where each sequence of a full-attention block begins and ends, (s + 1,);
            None where each row of the tower's batch is one.
    """

    def __init__(self, plan: Plan, family: Family, borders: Borders = lambda arguments: None) -> None:
        self.plan, self.family, self.borders = plan, family, borders
        wanted = encoder.Wanted.by(plan)
        self.layers = {name: family.score_layer() for name in wanted.needs}
        # Of the tower in the checkpoint: vLLM may build fewer blocks.
        depth = getattr(family.config.vision_config, "num_hidden_layers", None) or len(family.blocks())
        for share in wanted.early:
            self.layers[encoder.early_name(share)] = round(share * (depth - 1))
        self._seen: dict[str, Read] | None = None
        self._before: list[Tensor] | None = None
        self._arguments: dict[str, Any] = {}
        for layer in sorted(set(self.layers.values())):
            if layer >= len(family.blocks()):
                raise UnsupportedError(
                    f"vLLM builds {len(family.blocks())} blocks of the tower, and block {layer} is wanted",
                    where=f"plan {plan}",
                    hint="a method that reads earlier blocks, or none",
                )
            self._listen(family.attention(layer), layer)
        if wanted.before and family.rowwise is not None:
            self._before = []
            module: nn.Module = family.core.get_submodule(family.rowwise)
            module.register_forward_pre_hook(self._keep_input)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._seen is not None and self._before is not None:
            self._before.append(args[0])

    def _listen(self, module: nn.Module, layer: int) -> None:
        names = [name for name, where in self.layers.items() if where == layer]
        kinds = {"attention" if name.startswith(encoder.EARLY) else name for name in names}
        row = self.family.cls_row()

        def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._seen is None:
                return
            query, key, value = (kwargs[n] if n in kwargs else args[i] for i, n in enumerate(("query", "key", "value")))
            # (b, tokens, heads * width) or (b, tokens, heads, width) -> (b, heads, tokens, width)
            query, key, value = (
                x.reshape(*x.shape[:2], -1, module.head_size).transpose(1, 2) for x in (query, key, value)
            )
            more = {"value": value, "scaling": module.scale}
            if (borders := self.borders(self._arguments)) is not None:
                more["cu_seq_lens_q"] = borders
            found = read(kinds, query, key, None, more, row, None)
            for name in names:
                kind = "attention" if name.startswith(encoder.EARLY) else name
                self._seen.setdefault(name, Read()).pieces.append(found[kind])

        module.register_forward_pre_hook(look, with_kwargs=True)

    # -- compressing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, encode: Callable[[], Sequence[Tensor]], arguments: dict[str, Any]) -> list[Picture]:
        """Encode pictures and reduce each by itself.

        Args:
            encode: runs tower and connector, gives (n, d) features per picture.
            arguments: what Foveate's adapter knows as those of ``get_image_features``, for the same pictures.

        Returns:
            One picture each: ``x`` (m, d) the tokens that stay, ``reduction`` how they came about (None: all stay).
        """
        self._seen, self._arguments = {}, arguments
        if self._before is not None:
            self._before.clear()
        try:
            features = list(encode())
            seen, before = self._seen, list(self._before or ())
        finally:
            self._seen, self._arguments = None, {}
        family, layouts = self.family, self.family.layouts(arguments, None)
        extras = self._extras(seen, layouts, arguments)
        rows: list[Tensor | None] = [None] * len(layouts)
        if before:
            # Where tokens were mixed after the connector there is no single row before it for each of them. This is asked
            # of each picture alone: which of them are encoded together is vLLM's affair.
            rows = [
                part[one.source[content_of(one), 0].to(part.device)] if one.source.shape[1] == 1 else None
                for part, one in zip(family.per_unit(before, layouts, arguments), layouts, strict=True)
            ]
        pictures = []
        for i, (x, layout) in enumerate(zip(features, layouts, strict=True)):
            mine = {name: values[i] for name, values in extras.items()}
            places, counts = torch.arange(layout.n), [len(content_of(layout))]
            picture = Picture(0, 0, places, layout, x, rows[i], mine, [], counts=counts)
            connector.reduce(family, self.plan, [picture], None)
            pictures.append(picture)
        return pictures

    def _extras(
        self, seen: dict[str, Read], layouts: list[Layout], arguments: dict[str, Any]
    ) -> dict[str, list[Extra]]:
        family, found = self.family, {}
        for name, layer in self.layers.items():
            kind = name.split()[0]
            values = family.per_unit(seen[name].whole(kind, family.cls_row()), layouts, arguments)
            origin = encoder.domain(family, layer) if kind in SUMMED else ""
            found[name] = [
                Extra(encoder.to_tokens(name, value, one), layer, origin)
                for value, one in zip(values, layouts, strict=True)
            ]
        return found


def groups(sizes: Sequence[int], limit: int) -> list[slice]:
    """Neighbouring pictures to encode together: at most ``limit`` tokens before compression, at least one picture.

    vLLM fills a step by the tokens that are left, and would hand the tower several times what it was measured with.
    """
    found, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            found.append(slice(start, i))
            start, total = i, 0
        total += size
    return [*found, slice(start, len(sizes))] if sizes else []
