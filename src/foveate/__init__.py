"""Foveate compresses the visual context of multimodal language models, on unmodified transformers models.

Importing it imports neither torch nor transformers; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .attach import Run, compress
    from .budget import Budget
    from .entries import Entries, Eviction
    from .errors import FoveateError, KeepError, MethodError, MissingExtraError, PlanError, UnsupportedError
    from .method import (
        CacheMethod,
        Card,
        LayerMethod,
        Method,
        Recipe,
        RerunMethod,
        ScoreMethod,
        TowerMethod,
        WorkMethod,
    )
    from .plan import Plan, Step
    from .report import Report
    from .routes import Route, Work
    from .tokens import Extra, Kind, Reduction, View

_HOME = {
    "budget": ("Budget",),
    "attach": ("Run", "compress"),
    "errors": ("FoveateError", "KeepError", "MethodError", "MissingExtraError", "PlanError", "UnsupportedError"),
    "entries": ("Entries", "Eviction"),
    "method": (
        *("Card", "Method", "Recipe", "ScoreMethod", "TowerMethod"),
        *("CacheMethod", "LayerMethod", "RerunMethod", "WorkMethod"),
    ),
    "routes": ("Route", "Work"),
    "plan": ("Plan", "Step"),
    "report": ("Report",),
    "tokens": ("Extra", "Kind", "Reduction", "View"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
