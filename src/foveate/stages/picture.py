"""One image of one prompt on its way through the steps, and how everything that belongs to it follows a reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..families import Layout
from ..tokens import Extra, Kind, Reduction
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


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """As torch.cat, without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def content_of(layout: Layout) -> Tensor:
    """(content tokens,) where a layout's content is, on the CPU."""
    return (layout.kind == Kind.CONTENT).nonzero()[:, 0]


def follow(
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
    content = content_of(layout)
    whole, on = len(content) == layout.n, content.to(device)
    kept = answer.anchor.to("cpu")
    structure = structure_of(layout, content[kept])
    lifted = answer if whole else answer.lift(on, layout.n, structure.to(device))
    if made is not None:
        picture.x = cat([made(), *([] if whole else [picture.x[structure.to(device)]])])
        if not whole:
            picture.x = picture.x[torch.cat([content[kept], structure]).argsort().to(device)]
    else:
        picture.x = lifted.apply(picture.x)
    picture.planes = [lifted.apply(plane) for plane in picture.planes]
    picture.reduction = lifted if picture.reduction is None else picture.reduction.then(lifted)
    picture.layout = follow_layout(layout, lifted.anchor.to("cpu"))
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


def structure_of(layout: Layout, kept: Tensor) -> Tensor:
    """Structure tokens that stay: a newline with any token of its line, everything else always. kept: content tokens."""
    other = (layout.kind != Kind.CONTENT).nonzero()[:, 0]
    if not len(other) or layout.line is None:
        return other
    closes = layout.kind[other] == Kind.NEWLINE
    return other[~closes | torch.isin(layout.line[other], layout.line[kept])]


def follow_layout(layout: Layout, anchor: Tensor) -> Layout:
    """The layout of some of its tokens. anchor: (m,), on the CPU."""
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
