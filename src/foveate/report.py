"""What a run did: tokens asked, kept and structural per image, what was kept, and how long choosing took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .entries import Thinned
from .tokens import Reduction


@dataclass(frozen=True)
class ImageReport:
    """One image of one prompt.

    Attributes:
        sample, ordinal: which prompt of the batch, which image of it.
        tokens_in, tokens_out: content tokens before and after.
        stages: (step, content tokens asked, content tokens after) in order.
        structure_in, structure_out: newline and separator tokens among the features, before and after.
        kept: (m,) anchors among the image's tokens, structure included, ascending, on the CPU.
        grids, boxes, tile, row, col, kind: where the image's tokens lay before, see :class:`foveate.families.Layout`.
        capped: True if the image had fewer tokens than a step asked for.
        reduction: from the image's tokens, structure included, to what is left, on the model's device; None if every
            step kept everything. What was merged in the tower is in it, although no later feature is that mean.
        tower: (block, tokens of the image that entered it, on the CPU) wherever a step reduced between the tower's blocks.
        members: (m, P) with preserved positions, the tokens of the image whose positions each kept token carries, on the
            CPU; a token that was not merged is P times itself. None without, or if no image was asked for less.
        positions: (axes, m, P) those positions as the language model counts them: one axis, or time, row and column.
        marks: what the steps said of the tokens that are left, by name: (tokens_out,), on the model's device.
        layers: (decoder layer, tokens of the image that run from there on, on the CPU) wherever a step changed that between
            the layers; ``kept`` are those that entered the language model.
        merges: (decoder layer, reduction of the tokens that were left before it) wherever tokens were merged there.
        average: content tokens that run, averaged over the decoder layers.
    """

    sample: int
    ordinal: int
    tokens_in: int
    tokens_out: int
    stages: tuple[tuple[str, int, int], ...]
    structure_in: int
    structure_out: int
    kept: Tensor
    grids: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    tile: Tensor
    row: Tensor
    col: Tensor
    kind: Tensor
    capped: bool = False
    reduction: Reduction | None = field(default=None, repr=False, compare=False)
    tower: tuple[tuple[int, Tensor], ...] = field(default=(), repr=False, compare=False)
    members: Tensor | None = field(default=None, repr=False, compare=False)
    positions: Tensor | None = field(default=None, repr=False, compare=False)
    marks: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    layers: tuple[tuple[int, Tensor], ...] = field(default=(), repr=False, compare=False)
    merges: tuple[tuple[int, Reduction], ...] = field(default=(), repr=False, compare=False)
    average: float = 0.0

    @property
    def survivors(self) -> Tensor:
        """Tokens of the image that any layer works on last: ``kept``, or what the layers left of it, if they left any."""
        some = [tokens for _, tokens in self.layers if len(tokens)]
        return some[-1] if some else self.kept


@dataclass(frozen=True)
class Report:
    """One compressed prompt call (a batch).

    Attributes:
        plan: the plan's text.
        images: all images, sample by sample.
        sequence_in, sequence_out: columns of the batch before and after, padding included.
        layers: decoder layers, for :attr:`layer_average`.
        notes: what passed untouched, and why.
        cache: what stayed of each layer's entries, prompt by prompt, where a step thinned out the cache.
        cache_bytes: what keys and values took up before and after that, measured; None if no step did.
    """

    plan: str
    images: tuple[ImageReport, ...]
    sequence_in: int
    sequence_out: int
    layers: int
    notes: tuple[str, ...] = ()
    cache: tuple[Thinned, ...] = field(default=(), repr=False, compare=False)
    cache_bytes: tuple[int, int] | None = None
    _seconds: Callable[[], float] = field(default=lambda: 0.0, repr=False, compare=False)

    @property
    def tokens_in(self) -> int:
        return sum(i.tokens_in for i in self.images)

    @property
    def tokens_out(self) -> int:
        return sum(i.tokens_out for i in self.images)

    @property
    def seconds(self) -> float:
        """Seconds spent choosing and rearranging, the model's own work left out (waits for the device)."""
        return self._seconds()

    @property
    def layer_average(self) -> float:
        """Content tokens per image, averaged over decoder layers: what papers that prune inside the model report."""
        return sum(i.average for i in self.images) / max(1, len(self.images))

    def of(self, sample: int) -> list[ImageReport]:
        """The images of one prompt."""
        return [i for i in self.images if i.sample == sample]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "plan": self.plan,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "layer_average": self.layer_average,
            "sequence_in": self.sequence_in,
            "sequence_out": self.sequence_out,
            "seconds": self.seconds,
            "cache_bytes": self.cache_bytes,
            "notes": list(self.notes),
            "images": [
                {
                    "sample": i.sample,
                    "ordinal": i.ordinal,
                    "tokens_in": i.tokens_in,
                    "tokens_out": i.tokens_out,
                    "structure_in": i.structure_in,
                    "structure_out": i.structure_out,
                    "capped": i.capped,
                    "stages": [list(s) for s in i.stages],
                    "tower": [[block, len(tokens)] for block, tokens in i.tower],
                    "layers": [[layer, len(tokens)] for layer, tokens in i.layers],
                    "average": i.average,
                    "kept": i.kept.tolist(),
                }
                | ({} if i.members is None else {"members": i.members.tolist()})
                | ({} if i.positions is None else {"positions": i.positions.tolist()})
                | ({"marks": {name: mark.tolist() for name, mark in i.marks.items()}} if i.marks else {})
                for i in self.images
            ],
        }

    def __str__(self) -> str:
        lines = [f"plan      {self.plan}"]
        for i in self.images:
            steps = " -> ".join([str(i.tokens_in), *(f"{after} ({name})" for name, _, after in i.stages)])
            extra = f", structure {i.structure_in} -> {i.structure_out}" if i.structure_in else ""
            short = ", fewer than asked for" if i.capped else ""
            lines.append(f"sample {i.sample} image {i.ordinal}: {steps} tokens{extra}{short}")
        lines.append(f"sequence  {self.sequence_in} -> {self.sequence_out} columns")
        lines.append(f"average   {self.layer_average:.1f} tokens per image and decoder layer")
        if self.cache_bytes is not None:
            before, after = (n / 2**20 for n in self.cache_bytes)
            lines.append(f"cache     {before:.1f} -> {after:.1f} MiB of keys and values")
        lines.append(f"choosing  {self.seconds * 1e3:.1f} ms")
        return "\n".join(lines + [f"note      {note}" for note in self.notes])


class Stopwatch:
    """Seconds of a piece of work on a device, without waiting for the device until somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.start = torch.cuda.Event(enable_timing=True)
            self.end = torch.cuda.Event(enable_timing=True)
            self.start.record()
        else:
            self.began = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        if not self.cuda:
            took = time.perf_counter() - self.began
            return lambda: took
        self.end.record()

        def read() -> float:
            self.end.synchronize()
            return self.start.elapsed_time(self.end) / 1e3

        return read
