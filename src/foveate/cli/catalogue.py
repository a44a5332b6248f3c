"""``foveate methods``, ``method`` and ``families``: what there is, read from cards and family classes."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, asdict, fields
from typing import Annotated, Any

import typer

from .tools import screen

As_json = Annotated[bool, typer.Option("--json", help="Plain data on standard output.")]


def methods(
    stage: Annotated[str | None, typer.Option(help="Only methods that run here: input, connector, ...")] = None,
    modality: Annotated[str | None, typer.Option(help="image, video or audio.")] = None,
    mechanism: Annotated[str | None, typer.Option(help="similarity, attention, query, transformation, ...")] = None,
    guidance: Annotated[str | None, typer.Option(help="none, or question if the text decides.")] = None,
    as_json: As_json = False,
) -> None:
    """List the methods."""
    from .. import registry
    from ..errors import PlanError
    from ..method import CHOICES, STAGES

    allowed = {"stage": STAGES, "mechanism": CHOICES["mechanism"], "guidance": CHOICES["guidance"]}
    allowed["modality"] = ("image", "video", "audio")
    asked = {"stage": stage, "mechanism": mechanism, "guidance": guidance, "modality": modality}
    for name, value in asked.items():
        if value is not None and value not in allowed[name]:
            raise PlanError(f"--{name} {value!r}", hint=", ".join(allowed[name]))
    cards = [
        card
        for card in registry.cards().values()
        if (stage is None or stage in card.stages)
        and (modality is None or modality in card.modality)
        and mechanism in (None, card.mechanism)
        and guidance in (None, card.guidance)
    ]
    if as_json:
        typer.echo(json.dumps([asdict(card) for card in cards], indent=2))
        return
    from rich.table import Table

    table = Table("method", "title", "paper", "stage", "mechanism", "guidance", "count", box=None, pad_edge=False)
    for card in cards:
        table.add_row(
            card.name, card.title, card.paper, ", ".join(card.stages), card.mechanism, card.guidance, card.count
        )
    screen().print(table)
    if not cards:
        typer.echo("no method fits", err=True)


def method(
    name: Annotated[str, typer.Argument(help="As listed by `foveate methods`.")], as_json: As_json = False
) -> None:
    """Show one method: its card, options, differences from the paper, and a plan to copy."""
    from .. import registry

    cls = registry.get(name)
    card, options = cls.card, options_of(cls)
    example = f"{name}:keep=64"
    if as_json:
        typer.echo(json.dumps({**asdict(card), "doc": _summary(cls), "options": options, "example": example}, indent=2))
        return
    from rich.table import Table

    out = screen()
    out.print(f"{name}  {card.title}", style="bold")
    if summary := _summary(cls):
        out.print(summary)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    lines = {
        "paper": card.paper,
        "code": card.code + (f" ({card.licence})" if card.licence else ""),
        "stages": ", ".join(card.stages),
        "features": f"{card.features} the connector",
        "needs": ", ".join(card.needs) or "nothing but the tokens",
        "guidance": card.guidance,
        "count": {
            "fixed": "exactly the budget",
            "grid": "nearest grid within the budget",
            "content": "decided by the input",
        }[card.count],
        "touches": f"{card.touches} tokens",
        "positions": f"{card.positions} in the paper",
        "training": card.training,
        "modality": ", ".join(card.modality),
        "mechanism": card.mechanism,
    }
    for key, value in lines.items():
        if value:
            table.add_row(key, value)
    out.print(table)
    if options:
        out.print("\noptions", style="bold")
        table = Table("name", "default", "meaning", box=None, pad_edge=False)
        for option in options:
            table.add_row(option["name"], str(option["default"]), option["meaning"])
        out.print(table)
    if card.differences:
        out.print("\ndifferences from the paper", style="bold")
        for difference in card.differences:
            out.print(f"- {difference}")
    out.print("\nuse", style="bold")
    extra = "".join(f",{o['name']}={o['default']}" for o in options[:1])
    out.print(f'foveate.compress(model, "{name}", keep=0.25)')
    out.print(f'foveate.compress(model, "{name}:keep=64{extra}")')
    out.print(
        f'foveate run testbed --image photo.jpg --ask "what color is the circle" --method {name} --keep 64',
        markup=False,
    )


def options_of(cls: type) -> list[dict[str, Any]]:
    """The options of a method: name, default, type and meaning, from its fields and its docstring."""
    meanings = _attributes(cls.__doc__ or "")
    found = []
    for option in fields(cls):
        default = None if option.default is MISSING else option.default
        kind = option.type if isinstance(option.type, str) else getattr(option.type, "__name__", str(option.type))
        found.append({"name": option.name, "default": default, "type": kind, "meaning": meanings.get(option.name, "")})
    return found


def _attributes(doc: str) -> dict[str, str]:
    """The entries of a docstring's ``Attributes:`` section."""
    _, _, section = inspect.cleandoc(doc).partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if not line.strip():
            break
        if start := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            name = start[1]
            found[name] = start[2].strip()
        elif name:
            found[name] += " " + line.strip()
    return {one: text for names, text in found.items() for one in names.split(", ")}


def _summary(cls: type) -> str:
    """A docstring up to its sections, as one paragraph."""
    text = (cls.__doc__ or "").split("Attributes:")[0].split("Args:")[0]
    return " ".join(text.split())


def families(as_json: As_json = False) -> None:
    """List the model families that are tested."""
    rows = family_rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table("family", "model_type", "CLS", "resizable", "note", box=None, pad_edge=False)
    says = {True: "yes", False: "no", None: "asks the tower"}
    for row in rows:
        table.add_row(
            row["family"], ", ".join(row["model_types"]), says[row["cls"]], says[row["resizable"]], row["note"]
        )
    out = screen()
    out.print(table)
    out.print(
        "\nOther models of transformers are probed when a plan is attached, and refused with a reason if they do not fit."
    )


def family_rows() -> list[dict[str, Any]]:
    """The families that are tested, as plain data."""
    from ..families import known

    classes = dict.fromkeys(known().values())
    return [
        {
            "family": cls.name,
            "model_types": list(cls.model_types),
            "cls": cls.has_cls,
            "resizable": cls.resizable,
            "features_before_connector": cls.rowwise is not None,
            "note": cls.note,
        }
        for cls in classes
    ]
