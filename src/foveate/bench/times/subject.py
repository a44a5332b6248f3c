"""One plan on one batch of prompts: what the time bench times of it, and what it measures once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...attach import compress
from ...errors import FoveateError, UnsupportedError
from ...plan import Plan
from ...stages.evict import bytes_of
from ..inside import STEPS
from ..runner import Entry, _encode, prefill
from .shapes import Prompts
from .speed import _peak
from .timing import Job, Times, interleaved

KINDS = ("tower", "prefill", "first_token", "decode", "total")

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """What is compared, on which model, and how often; see :func:`foveate.bench.times.clock.measure_time`."""

    model: Any
    processor: Any
    prompts: Prompts
    entries: Sequence[Entry]
    rounds: int
    tick: Tick

    def attached(self, plan: Plan | None) -> Any:
        """The run of a plan, as a context; nothing for the uncompressed model."""
        return nullcontext() if plan is None else compress(self.model, plan, processor=self.processor)

    def times(self, jobs: Mapping[str, Job], what: str) -> dict[str, Times]:
        """All of them in turns."""
        done = iter(range(1, len(jobs) * (self.rounds + 1) + 1))
        return interleaved(
            jobs,
            self.rounds,
            device=str(next(self.model.parameters()).device),
            tick=lambda: self.tick(what, next(done), len(jobs) * (self.rounds + 1)),
        )


class Subject:
    """A plan, or the uncompressed model, on one batch.

    Making one runs everything a first time, so that what cannot run fails here.

    Args:
        setting: the model and how plans are attached to it.
        fed: the batch, on the model's device.
        plan: None for the uncompressed model.
        new_tokens: that ``generate`` makes.

    Attributes:
        kinds: what can be timed.
        selection: seconds of choosing and rearranging, one for each call of the prefill job.
        cache_bytes: of keys and values after the prompt.
        peak: bytes of GPU memory that a prefill needs above what was held before it; None on other devices.
        kept: arguments that reach the decoder under the plan; None if the oracle would not be its limit.
    """

    def __init__(self, setting: Setting, fed: dict[str, Any], plan: Plan | None, new_tokens: int) -> None:
        self.setting, self.fed, self.plan, self.new_tokens = setting, fed, plan, new_tokens
        self.selection: list[float] = []
        before = plan is not None and all(step.stage not in ("layers", "cache") for step in plan.steps)
        self.kinds = (*KINDS, "oracle") if before else KINDS
        model = setting.model
        with setting.attached(plan):
            self.features = _encode(model, fed)
            with caught(model.get_decoder()) as calls:
                self.cache_bytes = bytes_of(prefill(model, fed, self.features).past_key_values)
        self.kept = calls[-1] if before else None
        for kind in self.kinds[2:]:  # tower and prefill have run
            with self.job(kind)() as work:
                work()
        self.peak = _peak(self.job("prefill")) if fed["input_ids"].is_cuda else None
        self.selection.clear()

    def job(self, kind: str) -> Job:
        """What is timed of it.

        Args:
            kind: one of ``kinds``. "decode" is :data:`foveate.bench.inside.STEPS` steps.
        """
        model, fed = self.setting.model, self.fed

        @contextmanager
        def go() -> Iterator[Callable[[], Any]]:
            if kind == "oracle":
                yield lambda: oracle(model, self.kept or {})
                return
            with self.setting.attached(self.plan) as run:
                if kind == "tower":
                    yield lambda: _encode(model, fed)
                elif kind == "prefill":
                    yield lambda: prefill(model, fed, self.features)
                    if run is not None and run.report is not None:
                        self.selection.append(run.report.seconds)
                elif kind == "first_token":
                    yield lambda: prefill(model, fed)
                elif kind == "decode":
                    out = prefill(model, fed, self.features)
                    yield lambda: decode(model, out)
                else:
                    yield self._generate

        return go

    @torch.inference_mode()
    def _generate(self) -> None:
        n = self.new_tokens
        out = self.setting.model.generate(**self.fed, max_new_tokens=n, min_new_tokens=n, do_sample=False, num_beams=1)
        if (made := out.shape[1] - self.fed["input_ids"].shape[1]) != n:
            raise UnsupportedError(f"the model generated {made} tokens instead of {n}", where=f"plan {self.plan}")


@torch.inference_mode()
def decode(model: Any, out: Any) -> None:
    """A few greedy steps on the cache that a prefill returned.

    No prompt of the batch is padded, so a step needs no mask; given one, some models count positions along all of it.
    """
    for _ in range(STEPS):
        token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        out = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


@contextmanager
def caught(module: torch.nn.Module) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of each call of a module meanwhile, as the hooks before this one left them."""
    calls: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@torch.inference_mode()
def oracle(model: Any, kept: Mapping[str, Any]) -> Any:
    """The stock decoder on arguments that it got under a plan, with a fresh cache, and the head on the last position.

    Args:
        model: without a run.
        kept: keyword arguments of the decoder. Their cache is not used.

    Returns:
        The decoder's output and (b, 1, vocabulary) products of the head, which some models still scale.
    """
    out = model.get_decoder()(**{**kept, "past_key_values": None, "use_cache": True})
    return out, model.get_output_embeddings()(out[0][:, -1:])


def tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives, or None and why it cannot: refused, or out of GPU memory."""
    try:
        return work(), ""
    except FoveateError as error:
        return None, str(error)
    except torch.OutOfMemoryError as error:
        said = str(error).partition(". ")[0]
    torch.cuda.empty_cache()  # the traceback, which held what was made so far, is gone by now
    return None, said
