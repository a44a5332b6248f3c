"""One request's turn on the model: attach its plan, generate, take it off again."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..attach import Run, compress
from ..plan import Plan
from ..report import Report
from .metrics import Metrics


class Gone(Exception):  # noqa: N818 (not a fault of anybody)
    """The client left before its turn came."""


class Turn:
    """Stands for the model where the handlers of ``transformers serve`` call ``model.generate``.

    They do so on one thread, one request after the other. So a plan can be attached for one call and be gone before the
    next, and every request may have its own. Everything else that they ask of the model is the model's.

    Attributes:
        gone: set when the client has hung up.
        over: set when the model is free again, and as it was.
        report: what compression did to the prompt; None before its first token, and without pictures.
        error: what went wrong in the call.
        written: tokens of the answer so far.
    """

    def __init__(self, model: Any, processor: Any, plan: Plan, seed: int | None, metrics: Metrics) -> None:
        self._model, self._processor, self.plan, self._seed, self._metrics = model, processor, plan, seed, metrics
        self._arrived = time.perf_counter()
        self.gone, self.over = threading.Event(), threading.Event()
        self.report: Report | None = None
        self.error: Exception | None = None
        self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def since(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._arrived

    def generate(self, **arguments: Any) -> Any:
        """As the model's, compressed. Called on the thread of the model."""
        try:
            if self.gone.is_set():
                raise Gone
            self._metrics.queue.observe(self.since())
            if self._seed is not None:
                torch.manual_seed(self._seed)
            with compress(self._model, self.plan, processor=self._processor) as run:
                watch = StoppingCriteriaList([_Watch(self, run)])
                return self._model.generate(**arguments, stopping_criteria=watch)
        except Exception as error:
            self.error = error
            raise
        finally:
            self.over.set()

    def stepped(self, run: Run) -> None:
        """A token was generated."""
        if not self.written:
            self._metrics.first.observe(self.since())
            self.report = run.report
        self.written += 1


class _Watch(StoppingCriteria):
    """Looks in after every token; stops when nobody listens any more."""

    def __init__(self, turn: Turn, run: Run) -> None:
        self._turn, self._run = turn, run

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        self._turn.stepped(self._run)
        return torch.full((len(input_ids),), self._turn.gone.is_set(), dtype=torch.bool, device=input_ids.device)
