"""Choosing: from encoder outputs and a prompt to one reduction per image.

Runs inside the forward call of the prompt, where question, placeholders and features are all known. Everything here is
per image; padding, batches and hooks are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError, UnsupportedError
from ..families import Family, Layout
from ..plan import Plan, Step
from ..tokens import Extra, Kind, Reduction, View
from .encoder import Encoded


@dataclass
class Picture:
    """One image of one prompt on its way through the steps.

    Attributes:
        sample, ordinal: which prompt, and which image of it.
        places: (n,) columns of its placeholders.
        layout: where its tokens lie.
        x: (n, d) features, later (m, d).
        before: (content tokens, d) features before the connector, or None.
        extras: aligned with the tokens, structure included.
        planes: deep-stack features, (n, d) each.
        reduction: from the n placeholders to what is left.
        asked: content tokens asked for by each step.
        counts: content tokens after each step, the full number first.
    """

    sample: int
    ordinal: int
    places: Tensor
    layout: Layout
    x: Tensor
    before: Tensor | None
    extras: dict[str, Extra]
    planes: list[Tensor]
    reduction: Reduction
    asked: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


def find_pictures(
    family: Family, ids: Tensor, kwargs: dict[str, Any], output: Any, encoded: Encoded
) -> tuple[list[list[Picture]], int]:
    """Match features to placeholders.

    Args:
        ids: (b, L) token ids of this call.
        output: of the encoder, perhaps with features repeated for beams: those of a whole prompt, prompt by prompt.
        encoded: what travelled with it, never repeated.

    Returns:
        The pictures of each distinct prompt, and how many batch rows each prompt has.

    Raises:
        UnsupportedError: if the numbers of placeholders and features do not match.
    """
    rows = torch.cat(family.rows(output))
    planes = family.planes(output)
    sizes = [one.n for one in encoded.layouts]
    mask = family.placeholders(ids, kwargs)
    found = mask.sum(1).tolist()
    repeat = max(1, len(rows) // max(1, sum(sizes)))
    columns = mask.nonzero()[:, 1]
    fault = UnsupportedError(
        f"{sum(found)} image placeholders in the prompt, {len(rows)} feature rows from the encoder",
        where=f"family {family.name}",
        hint="pass the processor's input_ids and pixel values unchanged, all images of a prompt in one call",
    )
    if sum(found) != len(rows) or len(rows) != repeat * sum(sizes):
        raise fault
    prompts: list[list[Picture]] = []
    unit = column = 0
    for sample, row in enumerate(range(0, len(ids), repeat)):
        first, have = unit, 0
        while have < found[row] and unit < len(sizes):
            have += sizes[unit]
            unit += 1
        if have != found[row] or any(found[row + i] != have for i in range(1, repeat)):
            raise fault
        places = list(columns[column : column + have].split(sizes[first:unit]))
        features = list(rows[column : column + have].split(sizes[first:unit]))
        stacks = [list(plane[column : column + have].split(sizes[first:unit])) for plane in planes]
        column += have * repeat
        pictures = []
        for ordinal, group in enumerate(family.group(ids[row], places)):
            units = [first + i for i in group]
            before = None
            if encoded.before is not None:
                before = torch.cat([encoded.before[u][_content(encoded.layouts[u])] for u in units])
            x = torch.cat([features[i] for i in group])
            layout = Layout.join([encoded.layouts[u] for u in units])
            pictures.append(
                Picture(
                    sample,
                    ordinal,
                    torch.cat([places[i] for i in group]),
                    layout,
                    x,
                    before,
                    {name: _join(name, [values[u] for u in units]) for name, values in encoded.extras.items()},
                    [torch.cat([stack[i] for i in group]) for stack in stacks],
                    Reduction.identity(layout.n, x.device),
                    counts=[int((layout.kind == Kind.CONTENT).sum())],
                )
            )
        prompts.append(pictures)
    return prompts, repeat


def _content(layout: Layout) -> Tensor:
    return (layout.kind == Kind.CONTENT).nonzero()[:, 0]


def _join(name: str, parts: Sequence[Extra]) -> Extra:
    return replace(parts[0], value=torch.cat([p.value for p in parts], dim=-1 if name == "attention" else 0))


def reduce(family: Family, plan: Plan, pictures: list[Picture], question: Tensor | None) -> None:
    """Run a plan's steps before the language model over the pictures of one prompt, in place."""
    for step in plan.steps:
        if step.stage not in ("input", "connector") or step.keep is None:
            continue
        counts = step.keep.counts([p.counts[-1] for p in pictures])
        for picture, k in zip(pictures, counts, strict=True):
            picture.asked.append(k)
            if k < picture.counts[-1]:
                _step(family, step, picture, k, question)
            picture.counts.append(picture.counts[-1] if k == picture.counts[-1] else _count(picture))


def _count(picture: Picture) -> int:
    return int((picture.layout.kind == Kind.CONTENT).sum())


def _step(family: Family, step: Step, picture: Picture, k: int, question: Tensor | None) -> None:
    """One method on one picture: features, planes, extras and layout follow what it answers."""
    layout, device = picture.layout, picture.x.device
    content = _content(layout)
    on = content.to(device)
    x = picture.x.index_select(0, on) if len(content) < layout.n else picture.x
    early = step.method.card.features == "before" and picture.before is not None
    extras = {name: e for name, e in picture.extras.items() if name in step.method.card.needs}
    if len(content) < layout.n:
        axis = {"attention": -1, "keys": 0}
        extras = {name: replace(e, value=e.value.index_select(axis[name], on)) for name, e in extras.items()}
    if question is not None and "question" in step.method.card.needs:
        extras["question"] = Extra(question, -1, "input embeddings of the language model")
    place = {name: getattr(layout, name)[content].to(device) for name in ("tile", "row", "col", "kind")}
    view = View(picture.before if early else x, k, ordinal=picture.ordinal, extras=extras, **place)  # type: ignore[arg-type]
    with torch.no_grad():
        answer = step.method(replace(view, x=view.x.detach()))
    where = f"method {step.method}, stage {step.stage}, family {family.name}, {view.n} tokens to {k}"
    if not isinstance(answer, Reduction) or answer.n != view.n:
        raise MethodError(f"it answered {answer!r}, not a reduction of the view", where=where)
    try:
        answer = answer.check().sorted()
    except MethodError as error:
        raise MethodError(error.what, where=where, hint="see the docstring of foveate.tokens.Reduction") from error
    card = step.method.card
    if card.count == "fixed" and answer.m != k or answer.m > k and card.count == "grid":
        raise MethodError(f"it kept {answer.m} tokens; its card says {card.count!r}", where=where)

    if early and not answer.is_drop:
        picture.before = answer.apply(picture.before)  # type: ignore[arg-type]
        slots = family.connect(picture.before)
    else:
        slots = answer.apply(x)
        picture.before = None if picture.before is None else answer.apply(picture.before)
    kept = answer.anchor.to("cpu")
    structure = _structure(layout, content[kept])
    if len(structure) or len(content) < layout.n:
        lifted = answer.lift(on, layout.n, structure.to(device))
        order = torch.cat([content[kept], structure]).argsort().to(device)
        picture.x = torch.cat([slots, picture.x.index_select(0, structure.to(device))])[order]
    else:
        lifted, picture.x = answer, slots
    picture.planes = [lifted.apply(plane) for plane in picture.planes]
    picture.extras = {name: _follow_extra(name, e, lifted) for name, e in picture.extras.items()}
    picture.reduction = picture.reduction.then(lifted)
    picture.layout = _follow_layout(layout, lifted.anchor.to("cpu"))


def _structure(layout: Layout, kept: Tensor) -> Tensor:
    """Structure tokens that stay: a newline with any token of its line, everything else always. kept: content tokens."""
    other = (layout.kind != Kind.CONTENT).nonzero()[:, 0]
    if not len(other) or layout.line is None:
        return other
    closes = layout.kind[other] == Kind.NEWLINE
    return other[~closes | torch.isin(layout.line[other], layout.line[kept])]


def _follow_layout(layout: Layout, anchor: Tensor) -> Layout:
    return replace(
        layout,
        row=layout.row[anchor],
        col=layout.col[anchor],
        tile=layout.tile[anchor],
        kind=layout.kind[anchor],
        source=layout.source[anchor],
        line=None if layout.line is None else layout.line[anchor],
    )


def _follow_extra(name: str, extra: Extra, reduction: Reduction) -> Extra:
    """Attention of merged tokens adds up, keys are averaged with the features' weights."""
    if name == "attention":
        return replace(extra, value=reduction.sizes(extra.value.mT.contiguous()).mT if reduction.is_drop else _sum(extra, reduction))
    return replace(extra, value=reduction.apply(extra.value))


def _sum(extra: Extra, reduction: Reduction) -> Tensor:
    return replace(reduction, weight=None, inserted=None).apply(extra.value.mT).mT


def question_embeddings(family: Family, ids: Tensor, valid: Tensor, special: set[int]) -> Tensor:
    """(q, d) embeddings of the question: the text after the last image, or all text if none follows it.

    Placeholders, padding and special tokens do not belong to it.

    Args:
        ids: (L,) of one prompt.
        valid: (L,) columns that are not padding.
        special: further ids to leave out, such as those of a processor's special tokens.
    """
    text = valid.bool() & (ids != family.image_token_id)
    for token in special:
        text &= ids != token
    last = (ids == family.image_token_id).nonzero()[-1, 0]
    after = text & (torch.arange(len(ids), device=ids.device) > last)
    chosen = ids[after if bool(after.any()) else text]
    embedding = family.model.get_input_embeddings()
    return embedding(chosen).detach()
