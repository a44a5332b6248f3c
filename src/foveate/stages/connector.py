"""Choosing: from encoder outputs and a prompt to one reduction per image.

Runs inside the forward call of the prompt, where question, placeholders and features are all known. Everything here is
per image; padding, batches and hooks are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MethodError, UnsupportedError
from ..families import Family, Layout
from ..plan import Plan, Step
from ..tokens import TOKEN_AXIS, Extra, Kind, Reduction, View
from .alive import joined
from .encoder import EARLY, Encoded, early_name, share_of
from .follow import token_types
from .passage import Done
from .question import Question, judged_by
from .reading import SUMMED


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
        size: (n,) original tokens in each token.
        reduction: from the n placeholders to what is left; None while nothing was asked of the image.
        marks: what steps left for later ones, aligned with the content tokens.
        relevance: (content tokens,) what the user's judge said of them, or None while nobody asked it.
        asked: content tokens asked for by each step.
        counts: content tokens after each step, the full number first.
        capped: whether a step asked for more tokens than there were.
        inside: for each step in the tower what it was asked, its reduction of the content tokens (None if all stay), and
            the content tokens that entered each block at which it stopped, counted before the step.
        tower: (block, tokens of the picture that entered it) of all those steps.
        members: (m, P) tokens whose positions each token that is left carries, where positions are preserved.
        positions: (axes, m, P) these positions.
        full: the layout before any step.
    """

    sample: int
    ordinal: int
    places: Tensor
    layout: Layout
    x: Tensor
    before: Tensor | None
    extras: dict[str, Extra]
    planes: list[Tensor]
    size: Tensor | None = None
    reduction: Reduction | None = None
    marks: dict[str, Tensor] = field(default_factory=dict)
    relevance: Tensor | None = None
    asked: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    capped: bool = False
    inside: list[tuple[int, Reduction | None, list[tuple[int, Tensor]]]] = field(default_factory=list)
    tower: list[tuple[int, Tensor]] = field(default_factory=list)
    members: Tensor | None = None
    positions: Tensor | None = None
    full: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.full = self.layout


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
    known = {piece.data_ptr() for piece in encoded.rows}
    if all(piece.data_ptr() in known for piece in rows):
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
            before = None
            if encoded.before is not None:
                before = _cat([encoded.before[u][_content(encoded.layouts[u])] for u in chosen])
            layout = Layout.join(layouts)
            pictures.append(
                Picture(
                    sample,
                    ordinal,
                    _cat([places[i] for i in group]),
                    layout,
                    _cat([features[place[u]] for u in chosen]),
                    before,
                    {name: _join(name, [values[u] for u in chosen]) for name, values in encoded.extras.items()},
                    [_cat([stack[place[u]] for u in chosen]) for stack in stacks],
                    counts=[len(_content(layout))],
                    inside=[_inside(done, chosen) for done in encoded.inside],
                )
            )
        prompts.append(pictures)
    return prompts, repeat


def _split(rows: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """The same rows in pieces of other sizes; views where possible."""
    if [len(r) for r in rows] == sizes:
        return rows
    return list(_cat(rows).split(sizes)) if rows else []


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _content(layout: Layout) -> Tensor:
    return (layout.kind == Kind.CONTENT).nonzero()[:, 0]


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
    return replace(parts[0], value=_cat([p.value for p in parts], _axis(name)))


def _axis(name: str) -> int:
    return TOKEN_AXIS[name.split()[0]]


def reduce(family: Family, plan: Plan, pictures: list[Picture], question: Question | None) -> None:
    """Run a plan's steps before the language model over the pictures of one prompt, in place."""
    done = 0
    for step in plan.steps:
        budget = step.keep
        assert budget is not None
        # What nobody will ask for is let go.
        last = step is plan.steps[-1] and (budget.is_all or step.method.marked_by is None)
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
                picture.counts.append(len(_content(picture.layout)))
        if not budget.is_all and step.method.marked_by is not None:
            for picture in pictures:
                _mark(family, step, picture)


def _features(step: Step, picture: Picture) -> Tensor:
    """(content tokens, d) of the kind that a step's card asks for."""
    if step.method.card.features == "before" and picture.before is not None:
        return picture.before
    content = _content(picture.layout)
    return picture.x if len(content) == picture.layout.n else picture.x[content.to(picture.x.device)]


def _view(
    family: Family, step: Step, picture: Picture, seen: Tensor, k: int, needs: Sequence[str], question: Question | None
) -> View:
    """The content tokens of a picture as a method sees them. seen: their features; needs: extras that it looks at."""
    layout, device = picture.layout, picture.x.device
    content = _content(layout)
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
    _follow(picture, answer, last, connect)


def _take_inside(step: Step, picture: Picture, number: int, last: bool) -> None:
    """A step that was made in the tower: its rows are there already, the others go."""
    budget = step.keep
    assert budget is not None
    asked, answer, stops = picture.inside[number]
    picture.capped |= budget.unit != "share" and budget.amount > picture.counts[-1]
    picture.asked.append(asked)
    if answer is not None:
        content = _content(picture.layout)
        before = torch.arange(picture.layout.n) if picture.reduction is None else picture.reduction.anchor.to("cpu")
        entered = torch.cat([tokens for _, tokens in stops]).to("cpu").split([len(tokens) for _, tokens in stops])
        picture.tower += [(block, before[content[t]]) for (block, _), t in zip(stops, entered, strict=True)]
        rows = picture.x if len(content) == picture.layout.n else picture.x[content.to(picture.x.device)]
        _follow(picture, answer, last, lambda: rows[answer.anchor], inside=True)
    picture.counts.append(len(_content(picture.layout)))


def _follow(
    picture: Picture, answer: Reduction, last: bool, made: Callable[[], Tensor] | None = None, inside: bool = False
) -> None:
    """Let everything of a picture follow a reduction of its content tokens.

    Args:
        picture: changed in place.
        answer: slots in the order of their anchors.
        last: whether no step comes after it.
        made: gives the slots' features, where these are not the reduction of the picture's own.
        inside: the reduction was made in the tower, so that what came out of it later is reduced already.
    """
    layout, device = picture.layout, picture.x.device
    content = _content(layout)
    whole, on = len(content) == layout.n, content.to(device)
    kept = answer.anchor.to("cpu")
    structure = _structure(layout, content[kept])
    lifted = answer if whole else answer.lift(on, layout.n, structure.to(device))
    if made is not None:
        picture.x = _cat([made(), *([] if whole else [picture.x[structure.to(device)]])])
        if not whole:
            picture.x = picture.x[torch.cat([content[kept], structure]).argsort().to(device)]
    else:
        picture.x = lifted.apply(picture.x)
    picture.planes = [lifted.apply(plane) for plane in picture.planes]
    picture.reduction = lifted if picture.reduction is None else picture.reduction.then(lifted)
    picture.layout = _follow_layout(layout, lifted.anchor.to("cpu"))
    picture.marks = {name: mark[answer.anchor] for name, mark in picture.marks.items()}
    if last:  # nobody will ask for these
        picture.before, picture.extras, picture.size, picture.relevance = None, {}, None, None
        return
    if picture.relevance is not None:
        each = _unweighted(answer)
        total = each.apply(torch.stack([picture.relevance, torch.ones_like(picture.relevance)], 1))
        picture.relevance = total[:, 0] / total[:, 1].clamp(min=1)
    if picture.before is not None:
        picture.before = picture.before[answer.anchor] if inside else answer.apply(picture.before)
    picture.extras = {name: _follow_extra(name, e, lifted) for name, e in picture.extras.items()}
    size = torch.ones(layout.n, device=device) if picture.size is None else picture.size
    picture.size = lifted.sizes(size)


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
    if name.split()[0] in SUMMED:
        return replace(extra, value=_unweighted(reduction).apply(extra.value.mT).mT)
    return replace(extra, value=reduction.apply(extra.value))


def _unweighted(reduction: Reduction) -> Reduction:
    """The same edges, all of weight one."""
    return reduction if reduction.is_drop else replace(reduction, weight=None, inserted=None)
