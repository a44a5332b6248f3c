"""What happened, from what the stages know to what a user reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .families import Family
from .plan import Plan
from .report import ImageReport, Report
from .stages.picture import Picture
from .stages.positions import Rotary
from .stages.strip import Strip
from .tokens import Kind


def summary(
    plan: Plan,
    family: Family,
    rotary: Rotary | None,
    pictures: list[Picture],
    before: int,
    after: int,
    notes: tuple[str, ...],
    seconds: Callable[[], float],
    strips: list[Strip],
) -> Report:
    """The report of one call.

    Args:
        plan, family, rotary: of the run.
        pictures: of all prompts, as the steps before the language model left them.
        before, after: columns of the batch.
        notes: what passed untouched, and why.
        seconds: asked for what choosing took.
        strips: the same pictures between the layers, where a step ran there.
    """
    names = [str(step) for step in plan.steps]
    images, depth = [], family.decoder_layers()
    inside = {id(strip.picture): strip for strip in strips if strip.counts}
    for p in pictures:
        strip = inside.get(id(p))
        asked = [*p.asked, *([] if strip is None else [k for k, _ in strip.steps])]
        counts = [*p.counts, *([] if strip is None else [n for _, n in strip.steps])]
        anchors = torch.arange(p.full.n) if p.reduction is None else p.reduction.anchor.to("cpu")
        images.append(
            ImageReport(
                p.sample,
                p.ordinal,
                counts[0],
                counts[-1],
                tuple(zip(names, asked, counts[1:], strict=False)),
                p.full.n - p.counts[0],
                int((p.layout.kind != Kind.CONTENT).sum()),
                anchors,
                p.full.grids,
                p.full.boxes,
                p.full.tile,
                p.full.row,
                p.full.col,
                p.full.kind,
                p.capped or (strip is not None and strip.capped),
                p.reduction,
                tuple(p.tower),
                None if p.members is None else p.members.to("cpu"),
                None if p.positions is None else p.positions.to("cpu"),
                p.marks,
                () if strip is None else tuple((layer, tokens.to("cpu")) for layer, tokens in strip.trace),
                () if strip is None else tuple(strip.merges),
                float(counts[-1]) if strip is None else strip.average(depth),
            )
        )
    if rotary is not None and rotary.count < plan.carried:
        sections = ", ".join(map(str, rotary.sections))
        notes += (
            f"a merged token carries {rotary.count} positions, not {plan.carried}, which does not divide the "
            f"frequencies of the rotary embedding: {sections}",
        )
    return Report(str(plan), tuple(images), before, after, depth, notes, _seconds=seconds)
