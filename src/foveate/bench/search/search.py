"""Finding how much of a picture each layer of a model needs: searches over schedules, on samples.

* ``gsearch`` (arXiv:2412.00556): layer by layer from the first, the smallest share of tokens at which nothing is lost; a
  smaller share is taken to lose no less than a larger one, so that halving finds it.
* ``psigmoid`` (the same paper): at a given mean, the shape of the slope, by Bayesian optimisation: a Gaussian process and
  expected improvement.
* ``vtw`` (arXiv:2405.05803): the first layer from which the picture may leave without changing the next token's
  distribution.

Every picture is encoded once. A schedule is chosen on some samples and then looked at on others, because the best of many is
better on the samples that chose it than it is.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attach import compress
from ...budget import Budget
from ...errors import UnsupportedError, require
from ...families import adapt
from ...plan import Plan
from ...report import Report
from ..flops import count
from ..runner import STOCK, Entry, _generate, encoded, prefill, prepared
from ..stats import accuracy, paired
from ..tasks import Task
from .rivals import rivals

METHODS = ("gsearch", "psigmoid", "vtw")
METRICS = ("agreement", "accuracy")
GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STEEP = (1.0, 100.0)  # where the steepness of a sigmoid is looked for, in equal factors
FIRST = 8  # schedules that are tried before the Gaussian process says where to look
ANY = Plan.of({"method": "gsearch", "keep": 0.5})  # features are encoded for some plan between the layers, and fit any


class Trial:
    """A model and samples on which plans between its layers are tried.

    Args:
        model, processor: as loaded by transformers.
        task: what to ask.
        metric: what a plan is good for: "agreement" with the uncompressed model's answers, or "accuracy".
        batch: samples per batch.
        max_new_tokens: longest answer.
        tick: called with what is tried, after every plan.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        *,
        metric: str = "agreement",
        batch: int = 16,
        max_new_tokens: int = 10,
        tick: Callable[[str], None] | None = None,
    ) -> None:
        if metric not in METRICS:
            raise UnsupportedError(f"metric {metric!r}", hint=" or ".join(METRICS))
        self.known = all(getattr(sample, "answer", None) is not None for sample in task.samples)
        if metric == "accuracy" and not self.known:
            raise UnsupportedError("accuracy asks for an answer to every sample", where=task.name, hint="agreement")
        self.model, self.processor, self.task, self.metric = model, processor, task, metric
        self.max_new_tokens, self.tick = max_new_tokens, tick
        self.depth = adapt(model).decoder_layers()
        self.tried = 0
        slices = task.slices()
        order = sorted(range(len(task.samples)), key=lambda i: slices.index(task.samples[i].slice))
        self.batches: list[tuple[list[int], dict[str, Any], Any]] = []
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            fed = prepared(model, task.inputs(processor, [task.samples[i] for i in places]))
            self.batches.append((places, fed, encoded(model, fed, [Entry(STOCK, ANY)])))
        self.stock, _ = self.answers(None)

    def answers(self, plan: Plan | None) -> tuple[list[str], list[Report]]:
        """Greedy answers in the order of the samples, and a report of each batch; None is the uncompressed model."""
        said, reports = [""] * len(self.task.samples), []
        for places, fed, features in self.batches:
            if plan is None:
                out = _generate(self.model, fed, features, self.max_new_tokens)
            else:
                with compress(self.model, plan, processor=self.processor) as run:
                    out = _generate(self.model, fed, features, self.max_new_tokens)
                if run.report is not None:
                    reports.append(run.report)
            texts = self.processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(places, texts, strict=True):
                said[i] = text.strip()
        return said, reports

    def same(self, said: Sequence[str]) -> list[bool]:
        """Whether each answer is the uncompressed model's."""
        return [a == b for a, b in zip(said, self.stock, strict=True)]

    def right(self, said: Sequence[str]) -> list[bool]:
        """Whether each answer is right."""
        return [self.task.correct(*pair) for pair in zip(said, self.task.samples, strict=True)]

    def outcomes(self, said: Sequence[str]) -> list[bool]:
        """By the metric of the trial."""
        return self.same(said) if self.metric == "agreement" else self.right(said)

    def value(self, plan: Plan | None) -> float:
        """Share of good outcomes."""
        said = self.stock if plan is None else self.answers(plan)[0]
        found = self.outcomes(said)
        self._ticked(str(plan))
        return sum(found) / max(1, len(found))

    @torch.inference_mode()
    def next_token(self, plan: Plan | None) -> Tensor:
        """(samples, vocabulary) logarithms of the next token's probabilities after each prompt, in float32."""
        rows: list[Any] = [None] * len(self.task.samples)
        for places, fed, features in self.batches:
            if plan is None:
                out = prefill(self.model, fed, features)
            else:
                with compress(self.model, plan, processor=self.processor):
                    out = prefill(self.model, fed, features)
            for i, row in zip(places, out.logits[:, -1].float().log_softmax(-1).cpu(), strict=True):
                rows[i] = row
        if plan is not None:
            self._ticked(str(plan))
        return torch.stack(rows)

    def tokens(self) -> int:
        """Visual tokens per image that enter the language model, on average."""
        _, fed, features = self.batches[0]
        with compress(self.model, ANY, processor=self.processor) as run:
            prefill(self.model, fed, features)
        if run.report is None or not run.report.images:
            raise UnsupportedError("the samples hold no picture", where=self.task.name)
        return max(1, round(run.report.tokens_in / len(run.report.images)))

    def _ticked(self, what: str) -> None:
        self.tried += 1
        if self.tick is not None:
            self.tick(what)


@dataclass
class Found:
    """What a search came to.

    Attributes:
        plan: the schedule, or None where nothing may be left out.
        history: every schedule tried, in order: ``plan``, ``value`` and what else the search knew.
    """

    plan: Plan | None
    history: list[dict[str, Any]] = field(default_factory=list)


# -- searches ----------------------------------------------------------------------------------------------------------


def gsearch(trial: Trial, eps: float = 0.02, grid: Sequence[float] = GRID, rows: str = "text") -> Found:
    """The smallest share of each layer at which the trial's value stays within ``eps`` of the uncompressed model's.

    From the first layer that can be cut to the last; deeper layers run on no more than the one that is looked at.

    Args:
        trial: samples to try on.
        eps: what may be lost, of 1.
        grid: shares to choose from, besides 1.
        rows: option of the method.
    """
    shares, history = [1.0] * trial.depth, list[dict[str, Any]]()
    least = trial.value(None) - eps

    def holds(layer: int, share: float) -> bool:
        tried = _gsearch([*shares[:layer], *[share] * (trial.depth - layer)], rows)
        value = trial.value(tried)
        history.append({"layer": layer, "share": share, "value": value, "plan": str(tried)})
        return value >= least - 1e-9

    for layer in range(1, trial.depth):
        smaller = sorted({float(share) for share in grid if share < shares[layer]})
        low, high = 0, len(smaller)  # smaller[high] holds, and so does the share there is
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(layer, smaller[middle]) else (middle + 1, high)
        shares[layer:] = [[*smaller, shares[layer]][high]] * (trial.depth - layer)
        if not shares[layer]:
            break
    return Found(None if min(shares) == 1 else _gsearch(shares, rows), history)


def _gsearch(shares: Sequence[float], rows: str) -> Plan:
    return Plan.of({"method": "gsearch", "options": {"shares": list(shares), "rows": rows}})


def psigmoid(trial: Trial, keep: object, evaluations: int = 24, seed: int = 0, rows: str = "text") -> Found:
    """The steepness and floor of a sigmoid whose mean is ``keep`` with the best value.

    The first schedules are the method's default and some that are spread evenly; each further one is where a Gaussian
    process through the values found so far expects most to be gained. Schedules that come to the same counts are tried once.
    Of equal values the process's favourite is taken.

    Args:
        trial: samples to try on.
        keep: the mean over the layers, in any spelling.
        evaluations: schedules to try.
        seed: of all that is drawn.
        rows: option of the method.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    process = require("sklearn.gaussian_process", "testbed")
    budget, depth, n, draw = Budget.parse(keep), trial.depth, trial.tokens(), np.random.default_rng(seed)
    (k,) = budget.counts([n])
    highest = max(0.0, (k * depth - n) / max(1, depth - 1) / n)  # the floor that a flat curve has
    kernels = process.kernels
    kernel = kernels.ConstantKernel() * kernels.Matern([0.3, 0.3], (0.05, 5.0), nu=2.5)
    kernel = kernel + kernels.WhiteKernel(0.1, (1e-3, 1.0))
    points, history, seen = list[np.ndarray](), list[dict[str, Any]](), set[tuple[int, ...]]()

    def plan_at(point: np.ndarray) -> Plan:
        steep = STEEP[0] * (STEEP[1] / STEEP[0]) ** point[0]
        options = {"steep": float(f"{steep:.3g}"), "low": round(float(point[1]) * highest, 4), "rows": rows}
        return Plan.of({"method": "psigmoid", "keep": budget, "options": options})

    def counts(point: np.ndarray) -> tuple[int, ...]:
        method: Any = plan_at(point).steps[0].method
        return tuple(method.lengths(n, k, depth))

    def attempt(point: np.ndarray) -> None:
        plan = plan_at(point)
        seen.add(counts(point))
        points.append(point)
        options = plan.steps[0].method.options()
        history.append({"value": trial.value(plan), "plan": str(plan), "options": options})

    def fitted() -> Any:
        model = process.GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a flat likelihood is no fault
            return model.fit(np.stack(points), np.array([one["value"] for one in history]))

    start = min(FIRST, max(1, evaluations))
    spread = np.stack([(draw.permutation(start) + draw.random(start)) / start for _ in range(2)], 1)
    for point in [np.array([0.5, 0.0]), *spread[1:]]:
        if counts(point) not in seen:
            attempt(point)
    while len(history) < evaluations:
        free = [point for point in draw.random((512, 2)) if counts(point) not in seen]
        if not free:
            break
        model = fitted()
        mean, spread = model.predict(np.stack(free), return_std=True)
        best = model.predict(np.stack(points)).max()
        attempt(free[int(np.argmax(_improvement(mean - best, spread)))])
    values = np.array([one["value"] for one in history])
    liked = fitted().predict(np.stack(points)) if len(points) > 1 else values
    winner = max(range(len(values)), key=lambda i: (values[i], liked[i]))
    return Found(plan_at(points[winner]), history)


def _improvement(gain: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Expected improvement of normal variables: gain (p,) of their means over the best, and their deviations (p,)."""
    wide = np.maximum(spread, 1e-12)
    z = gain / wide
    below = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in z])
    return gain * below + wide * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def vtw(trial: Trial, eta: float = 0.003) -> Found:
    """The first layer before which the picture may leave: the next token's distribution diverges by ``eta`` at most.

    Args:
        trial: samples to try on.
        eta: Kullback-Leibler divergence from the uncompressed model's distribution to the other, mean over samples.
    """
    history, whole = list[dict[str, Any]](), trial.next_token(None)
    for layer in range(1, trial.depth):
        plan = Plan.of({"method": "vtw", "options": {"layer": layer}})
        without = trial.next_token(plan)
        apart = float((without.exp() * (without - whole)).sum(-1).mean())
        history.append({"layer": layer, "divergence": apart, "plan": str(plan)})
        if apart <= eta:
            return Found(plan, history)
    return Found(None, history)


# -- all of it ---------------------------------------------------------------------------------------------------------


def most(method: str, depth: int, evaluations: int = 24, grid: Sequence[float] = GRID) -> int:
    """How many schedules a search tries at most, the uncompressed model included."""
    each = {"gsearch": 1 + (depth - 1) * math.ceil(math.log2(len(grid) + 1)), "psigmoid": evaluations, "vtw": depth - 1}
    return each[method]


def check(method: str, keep: object) -> None:
    """Raise UnsupportedError unless there is such a search, and it has a budget if it needs one."""
    if method not in METHODS:
        raise UnsupportedError(f"there is no search for {method!r}", hint=", ".join(METHODS))
    if (method == "psigmoid") != (keep is not None):
        raise UnsupportedError(
            "psigmoid needs a budget, gsearch and vtw find their own", where=method, hint="--keep 0.3 with psigmoid"
        )


def search(
    model: Any,
    processor: Any,
    method: str,
    data: tuple[Task, Task, str],
    *,
    keep: object = None,
    eps: float = 0.02,
    eta: float = 0.003,
    evaluations: int = 24,
    seed: int = 0,
    rows: str = "text",
    metric: str = "agreement",
    batch: int = 16,
    max_new_tokens: int = 10,
    tick: Callable[[str], None] | None = None,
) -> tuple[Plan | None, dict[str, Any]]:
    """Search a schedule, and look at it on samples that it was not chosen on.

    Args:
        model, processor: as loaded by transformers.
        method: one of :data:`METHODS`.
        data: samples to search on, others to check on, and a note on where they come from.
        keep: mean over the layers, of psigmoid.
        eps, eta, evaluations, seed, rows: see the searches.
        metric, batch, max_new_tokens, tick: see :class:`Trial`.

    Returns:
        The schedule (None where the search found nothing that may be left out), and plain data about it.
    """
    check(method, keep)
    began, (first, second, note) = time.perf_counter(), data
    common: dict[str, Any] = {"metric": metric, "batch": batch, "max_new_tokens": max_new_tokens}
    trial = Trial(model, processor, first, **common, tick=tick)
    asked: dict[str, Any]
    if method == "gsearch":
        asked, found = {"eps": eps, "grid": [*GRID, 1.0]}, gsearch(trial, eps, rows=rows)
    elif method == "psigmoid":
        asked = {"keep": str(Budget.parse(keep)), "evaluations": evaluations, "seed": seed}
        found = psigmoid(trial, keep, evaluations, seed, rows)
    else:
        asked, found = {"eta": eta}, vtw(trial, eta)
    result: dict[str, Any] = {"method": method, **asked, "metric": metric, "data": note, "task": first.note}
    result |= {"tried": trial.tried, "history": found.history, "plan": None if found.plan is None else str(found.plan)}
    result["seconds"] = time.perf_counter() - began
    if found.plan is not None:
        result["searched_on"] = told(trial, found.plan)
        trial.batches.clear()
        other = Trial(model, processor, second, **common)
        result["checked_on"] = told(other, found.plan)
        counted = count(model, other.batches[0][1], found.plan, processor=processor)
        assert counted.stock is not None
        result["flops"] = {
            "layers": counted.part("layers") / counted.stock.part("layers"),
            "prefill": counted.prefill / counted.stock.prefill,
        }
        result["by_hand"] = rivals(other, found.plan)
    return found.plan, result


def told(trial: Trial, plan: Plan) -> dict[str, Any]:
    """What a plan does on the samples of a trial: agreement, accuracy if answers are known, tokens of every layer."""
    said, reports = trial.answers(plan)
    images = [image for report in reports for image in report.images]
    entered = sum(len(image.kept) for image in images)
    layers = [0] * trial.depth
    for image in images:
        course = [(0, image.kept), *image.layers]
        for i in range(trial.depth):
            layers[i] += len([tokens for layer, tokens in course if layer <= i][-1])
    found: dict[str, Any] = {
        "samples": len(said),
        "agreement": accuracy(trial.same(said)),
        "shares": [n / max(1, entered) for n in layers],
        "tokens": [n / max(1, len(images)) for n in layers],
        "mean_share": sum(layers) / max(1, entered) / trial.depth,
    }
    if trial.known:
        before, after = trial.right(trial.stock), trial.right(said)
        found |= {"uncompressed": accuracy(before), "compressed": accuracy(after), "change": paired(after, before)}
    return found
