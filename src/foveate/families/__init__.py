"""The only place that knows a model's name: one small file per family that departs from the convention."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from torch import nn

from .base import Family
from .layout import Layout

__all__ = ["Family", "Layout", "adapt", "known"]


@cache
def known() -> dict[str, type[Family]]:
    """Family classes by ``config.model_type``."""
    found: dict[str, type[Family]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, Family) and cls.__module__ == module.__name__:
                found.update(dict.fromkeys(cls.model_types, cls))
    return found


def adapt(model: nn.Module) -> Family:
    """The family of a model: its own file if there is one, else the convention, which probes the model.

    Raises:
        UnsupportedError: if the model has no file and does not follow the convention.
    """
    return known().get(getattr(model.config, "model_type", ""), Family)(model)
