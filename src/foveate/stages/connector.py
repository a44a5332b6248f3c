"""Choosing: from encoder outputs and a prompt to one reduction per image.

Runs inside the forward call of the prompt, where question, placeholders and features are all known. Everything here is
per image; padding, batches and hooks are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError, UnsupportedError
from ..families import Family, Layout
from ..method import STAGES
from ..plan import Plan, Step
from ..tokens import TOKEN_AXIS, Extra, Reduction, View
from .alive import joined
from .encoder import EARLY, Encoded, early_name, share_of
from .follow import token_types
from .passage import Done
from .picture import Picture, cat, content_of, follow
from .question import Question, judged_by


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
    sizes = [one.n for one in encoded.layouts]
    rows, planes = family.rows(output), family.planes(output)
    total = sum(map(len, rows))
    types = {name: mine for name, (_, mine) in token_types(kwargs).items()}
    mask = family.placeholders(ids, kwargs | types)
    found = mask.sum(1).tolist()
    repeat = max(1, sum(found) // max(1, sum(sizes)))
    fault = UnsupportedError(
        f"{sum(found)} image placeholders in the prompt, {total} feature rows from the encoder",
        where=f"family {family.name}, ids of shape {tuple(ids.shape)}",
        hint="pass the processor's input_ids and pixel values unchanged, all images of a prompt in one call",
    )
    if sum(found) != repeat * sum(sizes) or total not in (sum(sizes), sum(found)) or len(ids) % repeat:
        raise fault
    units: list[list[int]] = []  # of each prompt
    unit = 0
    for row in range(0, len(ids), repeat):
        first, have = unit, 0
        while have < found[row] and unit < len(sizes):
            have += sizes[unit]
            unit += 1
        if any(found[row + i] != have for i in range(repeat)):
            raise fault
        units.append(list(range(first, unit)))
    # Features may come once for each row of a prompt, or once; not every model repeats them in the order of its rows.
    # Where they are the very tensors that left the encoder, one set of those is all that is needed.
    ours = {piece.data_ptr() for piece in encoded.rows}
    if all(piece.data_ptr() in ours for piece in rows):
        rows, planes, total = encoded.rows, encoded.planes, sum(sizes)
    copies = repeat if total > sum(sizes) else 1
    order = [u for mine in units for _ in range(copies) for u in mine]
    place = {u: i for i, u in reversed(list(enumerate(order)))}
    lengths = [sizes[u] for u in order]
    features = _split(rows, lengths)
    stacks = [_split([plane], lengths) for plane in planes]
    columns = list(mask.nonzero()[:, 1].split(found))
    prompts: list[list[Picture]] = []
    for sample, mine in enumerate(units):
        row = sample * repeat
        places = list(columns[row].split([sizes[u] for u in mine]))
        pictures = []
        for ordinal, group in enumerate(family.group(ids[row], places)):
            chosen = [mine[i] for i in group]
            layouts = [encoded.layouts[u] for u in chosen]
            parts = [None if encoded.before is None else encoded.before[u] for u in chosen]
            known = [part[content_of(one)] for part, one in zip(parts, layouts, strict=True) if part is not None]
            before = cat(known) if len(known) == len(parts) else None
            layout = Layout.join(layouts)
            pictures.append(
                Picture(
                    sample,
                    ordinal,
                    cat([places[i] for i in group]),
                    layout,
                    cat([features[place[u]] for u in chosen]),
                    before,
                    {name: _join(name, [values[u] for u in chosen]) for name, values in encoded.extras.items()},
                    [cat([stack[place[u]] for u in chosen]) for stack in stacks],
                    counts=[len(content_of(layout))],
                    inside=[_inside(done, chosen) for done in encoded.inside],
                )
            )
        prompts.append(pictures)
    return prompts, repeat


def _split(rows: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """The same rows in pieces of other sizes; views where possible."""
    if [len(r) for r in rows] == sizes:
        return rows
    return list(cat(rows).split(sizes)) if rows else []


def _inside(done: Done, units: list[int]) -> tuple[int, Reduction | None, list[tuple[int, Tensor]]]:
    """What a step in the tower did to the units of one picture; see :class:`Picture`."""
    asked = sum(done.asked[u] for u in units)
    if all(done.reductions[u] is None for u in units):
        return asked, None, []
    device = next(r.anchor.device for r in done.reductions if r is not None)
    stops: dict[int, list[Tensor]] = {}
    start, parts = 0, []
    for u in units:
        mine, n = done.reductions[u], done.sizes[u]
        parts.append((start + torch.arange(n, device=device), Reduction.identity(n, device) if mine is None else mine))
        for block, tokens in done.stops[u]:
            stops.setdefault(block, []).append(start + tokens)
        start += n
    return asked, joined(parts, start), [(block, torch.cat(tokens)) for block, tokens in stops.items()]


def _join(name: str, parts: Sequence[Extra]) -> Extra:
    return replace(parts[0], value=cat([p.value for p in parts], _axis(name)))


def _axis(name: str) -> int:
    return TOKEN_AXIS[name.split()[0]]


def reduce(family: Family, plan: Plan, pictures: list[Picture], question: Question | None) -> None:
    """Run a plan's steps before the language model over the pictures of one prompt, in place."""
    done = 0
    steps = [step for step in plan.steps if STAGES.index(step.stage) < STAGES.index("layers")]
    later = len(steps) < len(plan.steps)
    for step in steps:
        budget = step.keep
        assert budget is not None
        # What nobody will ask for is let go.
        last = step is steps[-1] and not later and (budget.is_all or step.method.marked_by is None)
        if step.stage == "encoder" and not budget.is_all:
            for picture in pictures:
                _take_inside(step, picture, done, last)
            done += 1
        else:
            have = [p.counts[-1] for p in pictures]
            for picture, k in zip(pictures, budget.counts(have), strict=True):
                there = sum(have) if budget.unit == "total" else picture.counts[-1]
                picture.capped |= budget.unit != "share" and budget.amount > there
                picture.asked.append(k)
                if k < picture.counts[-1]:
                    _step(family, step, picture, k, question, last)
                picture.counts.append(len(content_of(picture.layout)))
        if not budget.is_all and step.method.marked_by is not None:
            for picture in pictures:
                _mark(family, step, picture)


def _features(step: Step, picture: Picture) -> Tensor:
    """(content tokens, d) of the kind that a step's card asks for."""
    if step.method.card.features == "before" and picture.before is not None:
        return picture.before
    content = content_of(picture.layout)
    return picture.x if len(content) == picture.layout.n else picture.x[content.to(picture.x.device)]


def _view(
    family: Family, step: Step, picture: Picture, seen: Tensor, k: int, needs: Sequence[str], question: Question | None
) -> View:
    """The content tokens of a picture as a method sees them. seen: their features; needs: extras that it looks at."""
    layout, device = picture.layout, picture.x.device
    content = content_of(layout)
    whole, on = len(content) == layout.n, content.to(device)

    def only(x: Tensor, dim: int = 0) -> Tensor:
        return x if whole else x.index_select(dim, on)

    extras = {}
    for name in needs:
        carried = early_name(share_of(step)) if name == EARLY else name
        if (e := picture.extras.get(carried)) is not None:
            extras[name] = replace(e, value=only(e.value, TOKEN_AXIS[name]))
    if question is not None and "question" in needs:
        extras["question"] = Extra(question.embeddings, -1, "input embeddings of the language model")
        if question.relevance is not None:
            if picture.relevance is None:
                judged = picture.before if picture.before is not None else only(picture.x)
                picture.relevance = judged_by(question, judged.detach())
            extras["relevance"] = Extra(picture.relevance, -1, "relevance= of compress")
    if "vocabulary" in needs:
        model: Any = family.model
        extras["vocabulary"] = Extra(model.get_input_embeddings().weight.detach())
    if len(layout.boxes) > 1:
        extras["boxes"] = Extra(torch.tensor(layout.boxes), -1, "shares of the picture's width and height")
    place: dict[str, Any] = {name: getattr(layout, name)[content].to(device) for name in ("tile", "row", "col", "kind")}
    if picture.size is not None:
        place["size"] = only(picture.size)
    return View(seen.detach(), k, marks=dict(picture.marks), ordinal=picture.ordinal, extras=extras, **place)


def _mark(family: Family, step: Step, picture: Picture) -> None:
    """Let a step leave marks on the tokens that it left."""
    n = picture.counts[-1]
    where = f"marks of method {step.method}, stage {step.stage}, family {family.name}, {n} tokens"
    try:
        with torch.no_grad():
            view = _view(family, step, picture, _features(step, picture), n, step.method.marked_by or (), None)
            marks = dict(step.method.mark(view))
        for name, mark in marks.items():
            shape = tuple(mark.shape) if isinstance(mark, Tensor) else type(mark).__name__
            if shape != (n,):
                raise MethodError(f"{name!r} is {shape}", hint=f"a tensor of shape ({n},): a value for each token left")
    except MethodError as error:
        hint = error.hint or "see the docstring of foveate.method.Method.mark"
        raise MethodError(error.what, where=error.where or where, hint=hint) from error
    picture.marks |= marks


def _step(family: Family, step: Step, picture: Picture, k: int, question: Question | None, last: bool) -> None:
    """One method on one picture: features, planes, extras and layout follow what it answers."""
    card, seen = step.method.card, _features(step, picture)
    direct = card.features == "before" and picture.before is not None
    where = f"method {step.method}, stage {step.stage}, family {family.name}, {len(seen)} tokens to {k}"
    try:
        with torch.no_grad():
            answer = step.method(_view(family, step, picture, seen, k, card.needs, question))
        if not isinstance(answer, Reduction) or answer.n != len(seen):
            raise MethodError(f"it answered {answer!r}, not a reduction of the view")
        answer = answer.check().sorted()
        if (card.count == "fixed" and answer.m != k) or (card.count == "grid" and answer.m > k):
            raise MethodError(f"it kept {answer.m} tokens; its card says {card.count!r}")
    except MethodError as error:
        hint = error.hint or "see the docstring of foveate.tokens.Reduction"
        raise MethodError(error.what, where=error.where or where, hint=hint) from error

    connect = (lambda: family.connect(answer.apply(seen))) if direct and not answer.is_drop else None
    follow(picture, answer, last, connect)


def _take_inside(step: Step, picture: Picture, number: int, last: bool) -> None:
    """A step that was made in the tower: its rows are there already, the others go."""
    budget = step.keep
    assert budget is not None
    asked, answer, stops = picture.inside[number]
    picture.capped |= budget.unit != "share" and budget.amount > picture.counts[-1]
    picture.asked.append(asked)
    if answer is not None:
        content = content_of(picture.layout)
        before = torch.arange(picture.layout.n) if picture.reduction is None else picture.reduction.anchor.to("cpu")
        entered = torch.cat([tokens for _, tokens in stops]).to("cpu").split([len(tokens) for _, tokens in stops])
        picture.tower += [(block, before[content[t]]) for (block, _), t in zip(stops, entered, strict=True)]
        rows = picture.x if len(content) == picture.layout.n else picture.x[content.to(picture.x.device)]
        follow(picture, answer, last, lambda: rows[answer.anchor], inside=True)
    picture.counts.append(len(content_of(picture.layout)))
