"""Finds methods: every file in ``foveate/methods`` and every entry point of the group ``foveate.methods``.

Nothing is listed by hand. A file that fails to import, holds no method, or whose card bears another name is an error:
a method never vanishes silently.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from .errors import PlanError
from .method import RESERVED, Card, Method, Recipe

GROUP = "foveate.methods"
MethodClass = type[Method] | type[Recipe]


@cache
def classes() -> dict[str, MethodClass]:
    """All known methods by name: the package's own, then those of installed plug-ins.

    Raises:
        PlanError: if a file or entry point does not hold exactly one method of its own name, or two claim one name.
    """
    from . import methods

    found: dict[str, MethodClass] = {}
    for info in pkgutil.iter_modules(methods.__path__):
        found[info.name] = _from_module(importlib.import_module(f"{methods.__name__}.{info.name}"), info.name)
    for entry in entry_points(group=GROUP):
        loaded = entry.load()
        cls = _checked(loaded, entry.name) if inspect.isclass(loaded) else _from_module(loaded, entry.name)
        if entry.name in found:
            raise PlanError(f"two methods are named {entry.name!r}: {found[entry.name].__module__} and {entry.value}")
        found[entry.name] = cls
    return dict(sorted(found.items()))


def _from_module(module: ModuleType, name: str) -> MethodClass:
    own = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and issubclass(cls, (Method, Recipe))
        and cls.__module__ == module.__name__
        and not inspect.isabstract(cls)
    ]
    if len(own) != 1:
        raise PlanError(f"{module.__name__} defines {len(own)} methods", hint="one file, one method")
    return _checked(own[0], name)


def _checked(cls: type, name: str) -> MethodClass:
    card = getattr(cls, "card", None)
    if not issubclass(cls, (Method, Recipe)) or not isinstance(card, Card) or card.name != name:
        raise PlanError(f"{cls.__module__}.{cls.__name__} needs to be a method with a card named {name!r}")
    if clash := {f.name for f in fields(cls)} & set(RESERVED):
        raise PlanError(
            f"{name} has an option named {', '.join(sorted(clash))}",
            hint=f"another name; plan text says {', '.join(RESERVED)} of every step",
        )
    return cls


def get(name: str) -> MethodClass:
    """The class of a method.

    Raises:
        PlanError: if there is none of that name; the message offers the nearest.
    """
    known = classes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise PlanError(f"no method named {name!r}", hint=" or ".join(near) if near else "`foveate methods` lists all")
    return known[name]


def cards() -> dict[str, Card]:
    """The cards of all known methods, by name."""
    return {name: cls.card for name, cls in classes().items()}
