"""What is particular about a model family, as data and a few small functions. The base class is the common convention:

``model.model`` (the core) has ``get_image_features(...)`` whose ``pooler_output`` holds the visual features in the order
of the placeholders in ``input_ids``; ``forward`` accepts ``mm_encoder_outputs``; tokens of an encoder item fill a square
grid in raster order. A family that follows it needs no file; one that departs overrides what differs.

Words: a *unit* is what the encoder treats as one item (an image, or one tile of it); an *image* is what a user counts.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .layout import Layout


class Family:
    """One model family on one model.

    Args:
        model: the transformers model with a language-model head.

    Raises:
        UnsupportedError: if the model does not follow the convention.
    """

    name: ClassVar[str] = "convention"
    model_types: ClassVar[tuple[str, ...]] = ()  # values of config.model_type
    core_name: ClassVar[str] = "model"  # attribute of the model that encodes and merges
    features: ClassVar[str] = "pooler_output"  # field of the encoder's output that holds the features
    has_cls: ClassVar[bool | None] = None  # None: ask the tower
    rowwise: str | None = None  # connector module that maps each tower token to one token, if it is one
    units_are_images: bool = True  # what the encoder treats as one item is what a user counts
    resizable: bool = False  # the tower takes pictures of other sizes
    fixed: str = "takes pictures of one size only"  # why not, if it does not
    note: ClassVar[str] = ""  # what the capability table says about this family

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.core: Any = getattr(model, self.core_name) if hasattr(model, self.core_name) else model
        self.config: Any = model.config
        fault = ""
        if not callable(getattr(self.core, "get_image_features", None)):
            fault = f"{type(self.core).__name__} has no get_image_features"
        elif "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            fault = f"{type(model).__name__}.forward takes no mm_encoder_outputs"
        elif self._image_token() is None:
            fault = f"{type(self.config).__name__} names no image_token_id"
        if fault:
            raise UnsupportedError(
                fault,
                where=f"model_type {getattr(self.config, 'model_type', '?')!r}",
                hint="transformers >= 5.18 and a vision-language model; `foveate families` lists those that are tested",
            )

    # -- the prompt ------------------------------------------------------------------------------------------------

    def _image_token(self) -> int | None:
        return getattr(self.config, "image_token_id", None)

    @property
    def image_token_id(self) -> int:
        token = self._image_token()
        assert token is not None
        return token

    @property
    def pad_token_id(self) -> int:
        """A harmless id for slots that the mask hides: never a placeholder."""
        text = self.config.get_text_config()
        pad = getattr(text, "pad_token_id", None)
        return 0 if pad is None or pad == self.image_token_id else int(pad)

    def placeholders(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """(b, L) mask of the ids that stand for image features."""
        return ids == self.image_token_id

    def group(self, ids: Tensor, places: list[Tensor]) -> list[list[int]]:
        """Which units of one prompt form one image: by default each is an image.

        Args:
            ids: (L,) token ids of the prompt.
            places: positions of each unit's placeholders.
        """
        return [[i] for i in range(len(places))]

    def boxes(self, ids: Tensor, places: list[Tensor]) -> tuple[tuple[float, float, float, float], ...] | None:
        """Boxes of the tiles of one image, where its units are tiles; None if the layouts know them.

        Args:
            ids: (L,) token ids of the prompt.
            places: positions of the placeholders of the image's units.
        """
        return None

    def positions(self, kwargs: dict[str, Any], past: int) -> Tensor:
        """Position ids that the model would make by itself, (b, L) or (axes, b, L), before anything is dropped."""
        ids = kwargs["input_ids"]
        return torch.arange(past, past + ids.shape[1], device=ids.device).expand(len(ids), -1)

    # -- the encoder -----------------------------------------------------------------------------------------------

    def encoder_arguments(self, kwargs: dict[str, Any], modality: str = "image") -> dict[str, Any]:
        """The keyword arguments of ``get_<modality>_features`` that are among ``kwargs``."""
        function = getattr(self.core, f"get_{modality}_features", None)
        if function is None:
            return {}
        names = [name for name in inspect.signature(function).parameters if name != "kwargs"]
        return {name: kwargs[name] for name in names if kwargs.get(name) is not None}

    def rows(self, output: Any) -> list[Tensor]:
        """The features as (rows, d) tensors, in placeholder order."""
        items = output[self.features]
        return [item.reshape(-1, item.shape[-1]) for item in items]

    def planes(self, output: Any) -> list[Tensor]:
        """Deep-stack features, aligned with the rows: one (all rows, d) tensor per layer."""
        planes = output.get("deepstack_features") if hasattr(output, "get") else None
        return [] if planes is None else [torch.cat(list(plane)) for plane in planes]

    def replaced(self, output: Any, features: list[Tensor], planes: list[Tensor], equal: bool = False) -> Any:
        """A copy of the encoder's output with other features: one (m, d) tensor per image, and planes to match.

        Args:
            equal: the features have the lengths they had, and the container keeps its shape.
        """
        new = copy.copy(output)
        old = output[self.features]
        if isinstance(old, Tensor):
            new[self.features] = torch.stack(features) if equal else torch.cat(features)[None]
        else:
            new[self.features] = list(features)
        if planes:
            lengths = [len(f) for f in features]
            new["deepstack_features"] = [list(plane.split(lengths)) for plane in planes]
        return new

    def layouts(self, arguments: dict[str, Any], output: Any) -> list[Layout]:
        """One layout per unit, in placeholder order.

        Args:
            arguments: those of ``get_image_features``.
            output: what it returned.
        """
        found = []
        for item in output[self.features]:
            n = item.reshape(-1, item.shape[-1]).shape[0]
            side = math.isqrt(n)
            height, width = (side, side) if side * side == n else (1, n)
            found.append(Layout.grid(height, width))
        return found

    def full_layouts(self, arguments: dict[str, Any]) -> list[Layout]:
        """The layouts that :meth:`layouts` would give, from the arguments alone, before anything is encoded."""
        raise self.one_size()

    def shrunk(self, arguments: dict[str, Any], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        """Encoder arguments for the same pictures, each scaled so that it gives ``sizes`` (rows, columns) of tokens.

        Raises:
            UnsupportedError: if this family's tower takes one size only.
        """
        raise self.one_size()

    def one_size(self) -> UnsupportedError:
        """The error for those who want a smaller picture all the same."""
        return UnsupportedError(
            f"{type(self.model).__name__} {self.fixed}",
            where=f"family {self.name}, stage input",
            hint="pool, which averages tokens after the tower",
        )

    def connect(self, rows: Tensor) -> Tensor:
        """The connector on single tower tokens (m, d_tower) -> (m, d), for families where it is row-wise."""
        assert self.rowwise is not None
        return self.core.get_submodule(self.rowwise)(rows[None])[0]

    # -- the tower -------------------------------------------------------------------------------------------------

    def tower(self) -> nn.Module:
        """The vision tower."""
        for name in ("vision_tower", "visual", "vision_model"):
            if isinstance(module := getattr(self.core, name, None), nn.Module):
                return module
        raise UnsupportedError(f"no vision tower found in {type(self.core).__name__}", where=f"family {self.name}")

    def blocks(self) -> nn.ModuleList:
        """The tower's transformer blocks, first to last."""
        lists = [m for m in self.tower().modules() if isinstance(m, nn.ModuleList) and len(m) and _attention_of(m[0])]
        if not lists:
            raise UnsupportedError(
                f"{type(self.tower()).__name__} has no attention blocks that can be read",
                where=f"family {self.name}",
                hint="choose a method that needs no attention, such as divprune",
            )
        return max(lists, key=len)

    def last_block(self) -> int:
        """Index of the last block whose output feeds the connector."""
        layer = getattr(self.config, "vision_feature_layer", -1)
        count = len(self.blocks())
        return max(count + i if i < 0 else i - 1 for i in ([layer] if isinstance(layer, int) else layer))

    def score_layer(self) -> int:
        """Index of the block whose attention scores tokens."""
        return self.last_block()

    def score_attention(self) -> nn.Module:
        """The attention module of :meth:`score_layer`."""
        return self.attention(self.score_layer())

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a block."""
        module = _attention_of(self.blocks()[layer])
        assert module is not None
        return module

    def in_windows(self, layer: int) -> bool:
        """Whether the tokens of a block see only those of their window."""
        return False

    def tower_layouts(self, arguments: dict[str, Any], tiles: int, patches: int) -> list[Layout]:
        """The layouts that :meth:`layouts` will give, while the tower is at work.

        Args:
            arguments: those of ``get_image_features``.
            tiles, patches: rows of the tower's batch, and tokens in each, CLS left out.

        Raises:
            UnsupportedError: if what happens to the tower's tokens after it is not known.
        """
        raise UnsupportedError(
            f"{type(self.model).__name__} has no adapter that says which of the tower's tokens end in which feature",
            where=f"family {self.name}, stage encoder",
            hint="a method of the connector stage, such as divprune or visionzip",
        )

    def block_argument(self, name: str, value: Any, places: Tensor) -> Any:
        """An argument of a tower block that is aligned with its tokens, for some of them; None if it is not known.

        Args:
            name, value: of the argument, with all tokens: neither hidden states, nor masks, nor borders of sequences.
            places: (b, m) tokens in each row of the tower's batch.
        """
        if name == "position_embeddings" and len(places) == 1:
            return tuple(table.index_select(-2, places[0]) for table in value)
        if name == "position_ids" and len(places) == 1:
            return value.index_select(-1 if len(value) == 1 else 0, places[0])  # (1, tokens), or (tokens, axes)
        return None

    def pixels(self, given: Tensor, layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        """What the tower sees of each patch: one (tower tokens, c) tensor per unit, in the order ``Layout.source`` counts.

        Args:
            given: pixels as the tower gets them.
            layouts: of the units.
            arguments: of ``get_image_features``.
        """
        side = self.config.vision_config.patch_size
        cut = nn.functional.unfold(given.float(), side, stride=side).mT  # (b, patches in raster order, c)
        return self.per_unit([cut], layouts, arguments)

    def cls_row(self) -> int | None:
        """Row of the CLS token in the tower's sequence, or None."""
        if self.has_cls is None:
            has = any(
                name.split(".")[-1] in ("class_embedding", "cls_token") for name, _ in self.tower().named_parameters()
            )
            return 0 if has else None
        return 0 if self.has_cls else None

    def per_unit(self, values: list[Tensor], layouts: list[Layout], arguments: dict[str, Any]) -> list[Tensor]:
        """Split what was read in the tower by unit.

        Args:
            values: one (rows of the tower's batch, tokens without CLS, ...) tensor per call of the attention module.
            layouts: of the units.
            arguments: of ``get_image_features``.

        Returns:
            One (tower tokens, ...) tensor per unit, in the order ``Layout.source`` counts.
        """
        flat = torch.cat([v.flatten(0, 1) for v in values])
        sizes = [one.patches for one in layouts]
        if len(flat) != sum(sizes):
            raise UnsupportedError(
                f"the tower has {len(flat)} tokens where the layouts of its pictures have {sum(sizes)}",
                where=f"family {self.name}, {type(self.tower()).__name__}",
                hint="choose a method that needs no attention or keys of the tower, such as divprune",
            )
        return list(flat.split(sizes))

    # -- the language model ----------------------------------------------------------------------------------------

    def decoder_layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    def layers(self) -> list[nn.Module]:
        """The decoder layers that a call runs, first to last."""
        decoder: Any = self.model.get_decoder()  # type: ignore[operator]
        decoder = decoder if hasattr(decoder, "layers") else getattr(decoder, "model", decoder)
        if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            raise UnsupportedError(
                f"the language model of {type(self.model).__name__} has no list of layers", where=f"family {self.name}"
            )
        return list(decoder.layers)[: self.decoder_layers()]

    def layer_kind(self, layer: int) -> str:
        """What kind of attention a decoder layer has: "full_attention", "sliding_attention", ..."""
        kinds = getattr(self.config.get_text_config(), "layer_types", None)
        return kinds[layer] if kinds else "full_attention"

    def layer_feed(self, layer: int) -> nn.Module:
        """The feed-forward network of a decoder layer."""
        one = self.layers()[layer]
        found = [getattr(one, name) for name in FEEDS if isinstance(getattr(one, name, None), nn.Module)]
        if not found:
            raise UnsupportedError(
                f"decoder layer {layer} of {type(self.model).__name__} has no {', '.join(FEEDS)}",
                where=f"family {self.name}",
            )
        return found[0]

    def layer_attention(self, layer: int) -> nn.Module:
        """The attention module of a decoder layer."""
        module = _attention_of(self.layers()[layer])
        if module is None:
            raise UnsupportedError(
                f"decoder layer {layer} of {type(self.model).__name__} has no attention that can be read",
                where=f"family {self.name}",
                hint="a method that reads no attention between the layers, such as adsc",
            )
        return module


FEEDS = ("mlp", "feed_forward", "block_sparse_moe")  # what a decoder layer calls its feed-forward network


def _attention_of(block: nn.Module) -> nn.Module | None:
    for name in ("self_attn", "attn", "attention"):
        if isinstance(module := getattr(block, name, None), nn.Module) and hasattr(module, "config"):
            return module
    return None
