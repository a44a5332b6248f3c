"""Foveate inside other people's harnesses: lmms-eval, ``datasets.map`` and Ray Data.

lmms-eval finds the model ``foveate`` by itself (:mod:`foveate.harness.lmms`), :func:`foveate.harness.task.export` makes a
task of the testbed that runs without a network, and :class:`foveate.harness.Answer` is a function from batches to batches.
Importing these modules imports none of the harnesses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Answer

__all__ = ["Answer"]


def __getattr__(name: str) -> Any:
    # On first use: lmms-eval imports this package whenever it lists its models.
    if name == "Answer":
        from .batch import Answer

        return Answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
