"""A second run: the first layers see the whole prompt, and the model then starts again on the tokens that they point at.

The first run ends inside the attention of the layer that is looked at, before a kernel is called; it has no cache, and
leaves nothing behind. What it costs is those layers on the whole prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..entries import Entries
from ..errors import MethodError, UnsupportedError
from ..families import Family
from ..method import LayerMethod, RerunMethod
from ..plan import Plan, Step
from ..tokens import Extra, Kind, Reduction
from . import tap
from .follow import token_types
from .picture import Picture, content_of, follow
from .prompt import ENDING, Base, shortened
from .question import text_columns

DROPPED = ("labels", "past_key_values", "use_cache", "logits_to_keep", "return_dict", "output_attentions")


def step_of(plan: Plan) -> Step | None:
    """A plan's step that runs again, if it has one that may change something."""
    some = [s for s in plan.steps if isinstance(s.method, RerunMethod) and (s.keep is None or not s.keep.is_all)]
    return some[0] if some else None


def check(family: Family, plan: Plan) -> None:
    """Raise UnsupportedError unless the plan's second run, if it has one, can be made."""
    step = step_of(plan)
    if step is None:
        return
    method, depth, fault = step.method, len(family.layers()), ""
    assert isinstance(method, RerunMethod)
    if not 0 <= (layer := method.layer(depth)) < depth:
        fault, hint = f"it looks at layer {layer}, the language model has {depth}", "another layer"
    elif isinstance(plan.steps[plan.steps.index(step) - 1].method, LayerMethod) and plan.steps.index(step):
        fault, hint = "it chooses before the layers run, and stands after a step between them", "the other order"
    elif sum(isinstance(other.method, RerunMethod) for other in plan.steps) > 1:
        fault, hint = "a plan runs again once", "one of the two"
    elif plan.carried:
        fault, hint = "positions that merged tokens carry are lost on the way", 'positions="original"'
    if fault:
        raise UnsupportedError(fault, where=f"method {method.name}, family {family.name}", hint=hint)


class _EnoughError(Exception):
    """Ends the first run."""


def hook(family: Family, step: Step, shelf: threading.local, undo: list[Callable[[], None]]) -> None:
    """Tap the layer that is looked at, for runs that ``shelf.first`` says are under way. undo: gets what ends it."""
    assert isinstance(step.method, RerunMethod)
    module = family.layer_attention(step.method.layer(len(family.layers())))

    def look(module, query, key, mask, kwargs):
        found = getattr(shelf, "first", None)
        if found is not None:
            found += [query, key]
            raise _EnoughError

    undo.append(tap.tap(module, look))


def chosen(
    family: Family, step: Step, shelf: threading.local, kwargs: dict[str, Any], base: Base, ends: Sequence[int]
) -> list[Tensor]:
    """The columns (k,) of each row that stay, ascending, by what the first layers see.

    Args:
        kwargs: of the model's forward, as the steps before left it.
        base: its columns.
        ends: the column after the last of each prompt: what comes after is a draft, and stays.
    """
    given = {k: v for k, v in kwargs.items() if k not in DROPPED}
    if given.get("attention_mask") is None:  # without a cache, gaps in positions would be read as borders
        given["attention_mask"] = base.valid.long()
    shelf.first = []
    try:
        with torch.no_grad():
            family.model(**given, use_cache=False)
        raise MethodError("the first run ended without its attention being read", where=f"family {family.name}")
    except _EnoughError:
        query, key = shelf.first
    finally:
        shelf.first = None
    image = placeholders(family, kwargs)
    kept = []
    for row, end in enumerate(ends):
        columns = torch.arange(len(base.valid[row]), device=key.device)
        number = (base.valid[row].to(key.device) & (columns < end)).nonzero()[:, 0]
        n = len(number)
        k = n if step.keep is None else step.keep.counts([n])[0]
        kind = torch.where(image[row].to(key.device)[number], int(Kind.CONTENT), int(Kind.TEXT))
        keys = key[row][:, number]
        extras = {"query": Extra(query[row][None, :, number[-1]])}
        left = torch.ones_like(number, dtype=torch.bool)
        with torch.no_grad():
            answer = step.method(Entries(keys, keys, kind, number, left, k, depth=len(family.layers()), extras=extras))
        if answer.shape != (k,) or bool((answer[1:] <= answer[:-1]).any()):
            raise MethodError(f"it kept {tuple(answer.shape)} tokens, or out of order", where=f"method {step.method}")
        rest = (base.valid[row].to(key.device) & (columns >= end)).nonzero()[:, 0]
        kept.append(torch.cat([number[answer], rest]))
    return kept


def twice(
    family: Family,
    plan: Plan,
    step: Step,
    shelf: threading.local,
    kwargs: dict[str, Any],
    output: Any,
    prompts: list[list[Picture]],
    repeat: int,
    past: Any,
    memory: Any,
) -> Tensor:
    """Make the first run, and let the pictures lose what it does not point at. The arguments are those of ``shortened``.

    Returns:
        (b, L) columns of text to leave out.
    """
    given, base = kwargs, Base.of(kwargs)
    if any(p.reduction is not None for mine in prompts for p in mine):
        given = shortened(family, plan, kwargs, output, prompts, repeat, past, memory)
        base = getattr(given["mm_encoder_outputs"]["image"], ENDING).base
    text = text_columns(kwargs)
    columns = [[base.columns(i * repeat, p) for p in mine] for i, mine in enumerate(prompts)]
    kept = chosen(family, step, shelf, given, base, base.ends(text))
    gone = text & ~placeholders(family, kwargs)
    for row, stays in enumerate(kept):
        gone[row, stays if base.cut is None else base.cut.index[row][stays]] = False
    for i, mine in enumerate(prompts):
        follow_choice(mine, columns[i], kept[i * repeat])
    return gone


def placeholders(family: Family, kwargs: dict[str, Any]) -> Tensor:
    """(b, L) the columns of a call that stand for image features."""
    return family.placeholders(
        kwargs["input_ids"], kwargs | {name: mine for name, (_, mine) in token_types(kwargs).items()}
    )


def follow_choice(pictures: list[Picture], columns: list[Tensor], kept: Tensor) -> None:
    """Let the pictures of a prompt lose the tokens that are not among those kept. One that would vanish keeps its first.

    Args:
        pictures: of one prompt, changed in place.
        columns: (n,) of each picture's tokens.
        kept: (k,) columns that stay.
    """
    for picture, mine in zip(pictures, columns, strict=True):
        content = content_of(picture.layout).to(mine.device)
        stays = torch.isin(mine[content], kept).nonzero()[:, 0]
        stays = stays if len(stays) else torch.zeros_like(content[:1])
        picture.asked.append(len(stays))
        if len(stays) < len(content):
            follow(picture, Reduction.drop(stays, len(content)), False)
        picture.counts.append(len(stays))
