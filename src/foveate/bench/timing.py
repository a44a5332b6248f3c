"""Times as ratios within one run: everything that is compared takes turns, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Times:
    """Seconds of repeated calls: wall clock, and processor time of all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str = "wall") -> float:
        return statistics.median(getattr(self, clock))

    def over(self, reference: Times, clock: str = "wall") -> float:
        """Ratio of medians."""
        return self.median(clock) / reference.median(clock)

    def spread(self, reference: Times, clock: str = "wall") -> tuple[float, float]:
        """Quartiles of the ratio, round by round (what turn-taking could not even out)."""
        ratios = [a / b for a, b in zip(getattr(self, clock), getattr(reference, clock), strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
        return first, third


Job = Callable[[], AbstractContextManager[Callable[[], Any]]]


def interleaved(
    work: Mapping[str, Job],
    repeats: int,
    *,
    warmup: int = 1,
    device: str = "cpu",
    tick: Callable[[], None] | None = None,
) -> dict[str, Times]:
    """Time several pieces of work in turns; every second round runs them backwards.

    Args:
        work: by name, functions that open a context (attach a plan, say) which gives the function to time; entering and
            leaving it is not timed.
        repeats: rounds that count.
        warmup: rounds before, that do not.
        device: waited for around every call if it is a CUDA device.
        tick: called after every call, warm-up included.
    """
    wait = _waiter(device)
    found = {name: Times() for name in work}
    for turn in range(-warmup, repeats):
        for name in list(work) if turn % 2 == 0 else list(work)[::-1]:
            with work[name]() as job:
                wait()
                wall, cpu = time.perf_counter(), time.process_time()
                job()
                wait()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                found[name].wall.append(wall)
                found[name].cpu.append(cpu)
            if tick is not None:
                tick()
    return found


def _waiter(device: str) -> Callable[[], None]:
    if not str(device).startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize
