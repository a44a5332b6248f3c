"""One image in one row of a batch, on its way through the language model's layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..families import Layout
from ..routes import Work
from ..tokens import Reduction
from .picture import Picture, content_of, follow_layout, structure_of


@dataclass
class Strip:
    """The tokens of an image in one row, those that wait included.

    Attributes:
        row: of the batch.
        picture: as it left the steps before the language model.
        every: base columns of all tokens that entered the language model.
        columns: (n,) base columns of its tokens, structure included.
        layout: where they lie, on the CPU.
        origin: (n,) which of the picture's tokens they are; one that was merged is where it stands.
        running: (n,) bool, or None if all run.
        marks: left by earlier steps, aligned with the content tokens.
        size: (n,) original tokens in each.
        reduction: from the tokens that entered the language model to those that are left; None while nothing happened.
        k, entered: budget and content tokens of the present step.
        steps: (content tokens asked, content tokens left) of each step of the plan so far.
        course: (layer, content tokens that run from there on), beginning with layer 0.
        trace: (layer, tokens of the picture that run from there on) at every stop that changed something.
        merges: (layer, reduction of the tokens that were left, structure included) wherever tokens were merged.
        work: what the present layer leaves out for it, or None.
        capped: whether a step asked for more tokens than there were.
        counts: whether it is the one that reports tell of, where a prompt has several rows.
    """

    row: int
    picture: Picture
    every: Tensor
    columns: Tensor
    layout: Layout
    origin: Tensor
    running: Tensor | None = None
    marks: dict[str, Tensor] = field(default_factory=dict)
    size: Tensor = None  # type: ignore[assignment]
    reduction: Reduction | None = None
    k: int = 0
    entered: int = 0
    steps: list[tuple[int, int]] = field(default_factory=list)
    course: list[tuple[int, int]] = field(default_factory=list)
    trace: list[tuple[int, Tensor]] = field(default_factory=list)
    merges: list[tuple[int, Reduction]] = field(default_factory=list)
    work: Work | None = None
    capped: bool = False
    counts: bool = True

    @classmethod
    def of(cls, row: int, picture: Picture, columns: Tensor, counts: bool = True) -> Strip:
        """The strip of a picture whose tokens are at ``columns`` (n,)."""
        n, device = len(columns), columns.device
        origin = torch.arange(n, device=device)
        if picture.reduction is not None:
            origin = picture.reduction.anchor.to(device)
        size = torch.ones(n, device=device) if picture.size is None else picture.size.to(device)
        marks = {name: mark.to(device) for name, mark in picture.marks.items()}
        count = picture.counts[-1]
        return cls(
            row,
            picture,
            columns,
            columns,
            picture.layout,
            origin,
            None,
            marks,
            size,
            course=[(0, count)],
            counts=counts,
        )

    @property
    def whole(self) -> bool:
        """Whether every token is content."""
        return self.count == self.layout.n

    @property
    def count(self) -> int:
        """Content tokens that are left."""
        return len(content_of(self.layout))

    @property
    def runs(self) -> Tensor:
        """(r,) base columns of the tokens that run."""
        return self.columns if self.running is None else self.columns[self.running]

    def content(self) -> Tensor:
        """(content tokens,) their places among the strip's tokens, on the strip's device."""
        return content_of(self.layout).to(self.columns.device)

    def follow(self, answer: Reduction, layer: int) -> Reduction:
        """Let everything follow a reduction of the content tokens, all of which run from then on.

        Returns:
            The reduction of all tokens, structure included.
        """
        kept = answer.anchor.to("cpu")
        content = content_of(self.layout)
        if self.whole:
            lifted = answer
        elif not len(kept):  # a picture without content has no structure
            lifted = Reduction.nothing(self.layout.n, self.columns.device)
        else:
            structure = structure_of(self.layout, content[kept]).to(self.columns.device)
            lifted = answer.lift(self.content(), self.layout.n, structure)
        self.columns, self.origin = self.columns[lifted.anchor], self.origin[lifted.anchor]
        self.size = lifted.sizes(self.size)
        self.layout = follow_layout(self.layout, lifted.anchor.to("cpu"))
        self.marks = {name: mark[answer.anchor] for name, mark in self.marks.items()}
        self.reduction = lifted if self.reduction is None else self.reduction.then(lifted)
        if not lifted.is_drop:
            self.merges.append((layer, lifted))
        self.running = None
        self._note(layer, answer.m)
        return lifted

    def route(self, running: Tensor, layer: int) -> None:
        """Let only some of the content tokens run. running: (r,), ascending."""
        content, device = self.content(), self.columns.device
        some = torch.zeros(self.layout.n, dtype=torch.bool, device=device)
        some[content[running]] = True
        if not self.whole and len(running):
            some[structure_of(self.layout, content_of(self.layout)[running.to("cpu")]).to(device)] = True
        self.running = None if len(running) == self.count else some
        self._note(layer, len(running))

    def _note(self, layer: int, count: int) -> None:
        self.course.append((layer, count))
        self.trace.append((layer, self.origin if self.running is None else self.origin[self.running]))

    def average(self, depth: int) -> float:
        """Content tokens that run, averaged over the layers."""
        ends = [layer for layer, _ in self.course[1:]] + [depth]
        return sum((end - start) * count for (start, count), end in zip(self.course, ends, strict=True)) / depth
