"""Times as ratios within one run: everything that is compared takes turns, so that a busy machine slows all alike."""

from __future__ import annotations

import ctypes
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Times:
    """Seconds of repeated calls: wall clock, and processor time of all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def median(self, clock: str = "wall") -> float:
        return statistics.median(getattr(self, clock))

    def ratios(self, reference: Times, clock: str = "wall") -> list[float]:
        """Round by round: what slows a machine for longer than a round drops out."""
        return [a / b for a, b in zip(getattr(self, clock), getattr(reference, clock), strict=True)]

    def over(self, reference: Times, clock: str = "wall") -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios(reference, clock))

    def spread(self, reference: Times, clock: str = "wall") -> tuple[float, float]:
        """Quartiles of the ratios (what turn-taking could not even out)."""
        return quartiles(self.ratios(reference, clock))


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third; of a single value, that value."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
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
    """Time several pieces of work in turns, each round in another order (the same orders every time).

    Whatever runs finds the memory and caches that the one before it left; in a random order that is not always the same
    one. Memory stays with the process meanwhile, see :func:`kept_memory`.

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
    order, draw = list(work), random.Random(0)
    with kept_memory():
        for turn in range(-warmup, repeats):
            draw.shuffle(order)
            for name in order:
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


_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -4, -3, -1  # parameters of glibc's mallopt


@contextmanager
def kept_memory() -> Iterator[bool]:
    """Let the C library keep freed memory instead of handing it back to the system; gives whether it can.

    Large blocks otherwise go back when they are freed, and getting them again costs a page fault per 4 KiB: a tenth of
    a prefill on a processor, and it falls on whichever piece of work comes next. Only glibc is known to need it. Its
    settings cannot be read, so on leaving it gets those that it reaches by itself once large blocks were freed.
    """
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if libc is None:
        yield False
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield True
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def _waiter(device: str) -> Callable[[], None]:
    if not str(device).startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize
