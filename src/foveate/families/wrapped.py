"""What stands around a transformers model: adapters, and calls by position."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..errors import UnsupportedError


def unwrapped(model: Any) -> tuple[Any, list[nn.Module]]:
    """The transformers model, and the modules through which it is called, outermost first.

    A PEFT tuner calls ``forward`` of the model that it wraps, past its hooks, while ``generate`` goes to the model.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"{type(model).__name__} is not a model", hint="pass pipeline.model, not the pipeline")
    from transformers import PreTrainedModel

    tuner: Any = model
    inner: Any = model
    if hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel):
        whole = hasattr(model, "get_base_model")
        tuner, inner = (tuner.base_model, inner.get_base_model()) if whole else (tuner, inner.model)
    if not hasattr(inner, "config") or not hasattr(inner, "get_input_embeddings"):
        raise UnsupportedError(
            f"{type(inner).__name__} is not a transformers model", hint="AutoModelForImageTextToText.from_pretrained"
        )
    return inner, list(dict.fromkeys([tuner, inner]))  # prompt tuning has no tuner in between


def named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments of a forward call by name, next to the keyword ones."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args).arguments
    extra = bound.pop("kwargs", {})
    if "args" in bound:
        raise UnsupportedError(f"{type(module).__name__} takes unnamed arguments", hint="pass input_ids=... by name")
    return {**bound, **extra, **kwargs}
