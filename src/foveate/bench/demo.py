"""What ``foveate demo`` measures and draws: methods at 1/3 and 1/9 of the tokens, and what each of them kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .. import lens, registry
from ..attach import compress
from ..errors import FoveateError
from .runner import STOCK, grid, measure, prefill, prepared
from .tasks import Task

KEEPS = {192: "1/3", 64: "1/9"}  # of 576
# Baselines, and one or two of each kind: all methods would take minutes. `--methods all` takes them.
METHODS = (
    "random", "stride", "pool", "resize", "onevision_encoder", "tome_tower", "tome", "dpcknn", "fastervlm", "visionzip",
    "divprune", "cdpruner",
)  # fmt: skip
SHOWN = ("reading-short", "small-detail", "attribute", "reading-dense", "chart")


@dataclass
class Panel:
    """One method on one question."""

    method: str
    keep: str
    answer: str
    right: bool
    tokens: int
    image: Image.Image


@dataclass
class Figure:
    """One question: the picture as it is, and what each method kept of it."""

    slice: str
    question: str
    answer: str
    uncompressed: str
    right: bool
    tokens: int
    image: Image.Image
    panels: list[Panel]

    def drawn(self, side: int = 240) -> Image.Image:
        """All panels in one picture, with captions."""
        whole = [self.image, *(p.image for p in self.panels)]
        images = [image.resize((side, side), Image.Resampling.LANCZOS) for image in whole]
        captions = [f"{self.question}\nuncompressed, {self.tokens} tokens: {self.uncompressed} {_mark(self.right)}"]
        captions += [f"{p.method}, {p.tokens} tokens: {p.answer} {_mark(p.right)}" for p in self.panels]
        return lens.strip(images, captions, columns=5)


def _mark(right: bool) -> str:
    return "(right)" if right else "(wrong)"


def steps(task: Task, methods: Sequence[str], repeats: int, batch: int) -> tuple[int, int]:
    """Ticks of :func:`demo`: of the answers, and of the times."""
    rows = 1 + len(methods) * len(KEEPS)
    return rows * -(-len(task.samples) // batch), rows * 2 * (repeats + 1)


def demo(
    model: Any,
    processor: Any,
    task: Task,
    *,
    methods: Sequence[str] | None = None,
    repeats: int = 3,
    batch: int = 16,
    figures: int = 5,
    tick: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], list[Figure]]:
    """Measure all methods, and draw what they kept for a few questions.

    Args:
        model, processor: the testbed.
        task: its questions.
        methods: names; all that are known when None.
        repeats: timed rounds.
        batch: questions per batch.
        figures: how many questions to draw.
        tick: called with "answers" or "times" after each step.
    """
    methods = list(methods or registry.classes())
    entries = grid(methods, list(KEEPS))
    result = measure(model, processor, task, entries, batch=batch, repeats=repeats, tick=tick)
    for row in result["rows"]:
        row["share"] = KEEPS.get(int(row["keep"]), row["keep"]) if row["keep"] else "all"
    said = result.pop("answers")
    smallest = [e for e in entries if e.plan is not None and e.keep == str(min(KEEPS))]
    right = {e.label: [task.correct(*p) for p in zip(said[e.label], task.samples, strict=True)] for e in entries}
    drawn = []
    for i in _telling(task, right, [e.label for e in smallest], figures):
        sample = task.samples[i]
        batch_of_one = task.inputs(processor, [sample])
        fed = prepared(model, batch_of_one)
        shown = lens.seen(sample.images, batch_of_one, processor)[0]
        panels, tokens = [], 0
        for entry in smallest:
            try:
                with compress(model, entry.plan, processor=processor) as run:
                    prefill(model, fed)
            except FoveateError:
                continue  # the table says why
            assert run.report is not None
            one = run.report.images[0]
            tokens = one.tokens_in
            view = lens.picture(shown, one, plan=entry.plan)
            panels.append(Panel(entry.method, "1/9", said[entry.label][i], right[entry.label][i], one.tokens_out, view))
        drawn.append(
            Figure(sample.slice, sample.question, sample.answer, said[STOCK][i], right[STOCK][i], tokens, shown, panels)
        )
    return result, drawn


def _telling(task: Task, right: dict[str, list[bool]], labels: Sequence[str], count: int) -> list[int]:
    """The first question of each slice that the uncompressed model gets right and about half of the methods get wrong.

    Only questions about one picture, without earlier turns: they can be shown whole.
    """
    names = [*(s for s in SHOWN if s in task.slices()), *(s for s in task.slices() if s not in SHOWN)]
    chosen = []
    for name in names:
        fit = [
            i
            for i, s in enumerate(task.samples)
            if s.slice == name and len(s.images) == 1 and not getattr(s, "history", None)
        ]
        if fit:
            half = len(labels) / 2
            chosen.append(
                min(fit, key=lambda i: (not right[STOCK][i], abs(sum(right[x][i] for x in labels) - half), i))
            )
    return chosen[:count]
