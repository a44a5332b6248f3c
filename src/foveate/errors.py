"""Errors that say what went wrong, where, and what to try next.

Every error of the library is a :class:`FoveateError`. Each also inherits the built-in that fits, so that code which
knows nothing of Foveate still catches it.
"""

from __future__ import annotations


class FoveateError(Exception):
    """Base of all errors raised by the library.

    Args:
        what: what is wrong, with the offending value.
        where: method, stage, family or shapes involved.
        hint: the next thing to try.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what + (f" [{where}]" if where else "") + (f"\n  try: {hint}" if hint else ""))


class KeepError(FoveateError, ValueError):
    """A budget that cannot be read, is out of range, or (strict) cannot be met."""


class PlanError(FoveateError, ValueError):
    """A plan that names unknown methods or fields, or steps that do not fit together."""


class MethodError(FoveateError, ValueError):
    """A method returned something that is not a reduction of its view, or met values it cannot rank."""


class UnsupportedError(FoveateError, ValueError):
    """A model, cache, input or call that the library refuses rather than compress wrongly."""


class MissingExtraError(FoveateError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str):
    """Import ``module`` lazily, or say which extra brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtraError: if the import fails.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"`{module}` could not be imported: {error}", hint=f'pip install "foveate[{extra}]"'
        ) from error
