"""What several commands share: reading ``--keep``, showing errors and progress, loading a model."""

from __future__ import annotations

import ast
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import FoveateError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..plan import Plan


def keep_of(text: str) -> object:
    """``--keep`` as Python would write it: 0.25 is a share, 64 a count, anything else text with a unit."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


def plan_of(text: str) -> Plan | str:
    """``--plan``: the plan in a file whose name ends in .json, or the text of one."""
    from ..plan import Plan

    if not text.endswith(".json"):
        return text
    try:
        return Plan.load(text)
    except OSError as error:
        raise UnsupportedError(f"--plan {text}: {error.strerror}", hint="a file that foveate search wrote") from error


def names_of(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers_of(text: str, kind: type) -> list[Any]:
    """Numbers with commas between them."""
    try:
        return [kind(one) for one in names_of(text)]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {kind.__name__} numbers with commas between them") from error


def command_of(start: str, context: typer.Context, leave: Sequence[str] = ()) -> str:
    """What was typed, as one line: options that were given, but for those to leave out."""
    words = list[str]()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in leave or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[option.name]
        if isinstance(value, bool):
            words.append(option.opts[0] if value else (option.secondary_opts or option.opts)[0])
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [option.opts[0], str(one)]
    return " ".join([start, *map(shlex.quote, words)])


def screen(stderr: bool = False) -> Console:
    """A rich console without markup; in a pipe or file it is wide enough for the tables."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120, highlight=False, markup=False)


def complain(error: FoveateError) -> None:
    """One block on standard error: what is wrong, where, and what to try."""
    lines = [f"error  {error.what}"]
    if error.where:
        lines.append(f"where  {error.where}")
    if error.hint:
        lines.append(f"try    {error.hint}")
    typer.echo("\n".join(lines), err=True)


def progress() -> Progress:
    """Progress bars on standard error, so that standard output stays clean."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=screen(stderr=True))


def load_testbed(device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """The shipped model and its processor.

    Raises:
        UnsupportedError: if this installation has no weights.
    """
    from .. import testbed

    try:
        testbed.model_path()
    except FileNotFoundError as error:
        raise UnsupportedError(
            "this installation has no testbed weights",
            where=str(testbed.__path__[0]),
            hint="a released wheel, which holds them, or `foveate testbed train` (hours on two cores)",
        ) from error
    from transformers.utils import logging

    logging.disable_progress_bar()
    return testbed.load(device, dtype)


def load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        name: "testbed", a folder, or a hub id.
        device, dtype: of the model; dtype "auto" is that of the weights.

    Raises:
        MissingExtraError: if its processor needs torchvision, which is not installed.
        UnsupportedError: if there is no such model, or it is not a vision-language model.
    """
    if name == "testbed":
        return load_testbed(device, "float32" if dtype == "auto" else dtype)
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(name)
    except Exception as error:
        raise _no_processor(name, error) from error
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UnsupportedError(
            f"{name} cannot be loaded as a vision-language model: {_first_line(error)}",
            hint="`foveate families` lists the families that are tested",
        ) from error
    return model.to(device).eval(), processor


def _no_processor(name: str, error: Exception) -> FoveateError:
    import importlib.util

    import torch

    if importlib.util.find_spec("torchvision") is None and "torchvision" in str(error).lower():
        return MissingExtraError(
            f"the processor of {name} needs torchvision, which is not installed",
            hint=f"install the torchvision that belongs to torch {torch.__version__}, from the same index as torch",
        )
    if not Path(name).exists() and isinstance(error, OSError):
        return UnsupportedError(
            f"no model {name!r}: {_first_line(error)}",
            hint="a folder written by save_pretrained, an id of a model hub that can be reached, or the word testbed",
        )
    return UnsupportedError(f"the processor of {name} cannot be built: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
