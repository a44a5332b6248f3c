"""What claims need to know of the inside of a model, measured piece by piece; each piece is noted as soon as it is there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ... import registry
from ...attach import compress
from ...errors import FoveateError
from ...families import adapt
from ...plan import Plan
from ..flops import count
from ..grid.conditions import _draw, _image
from ..grid.ledger import Ledger
from ..grid.results import STOCK, Entry
from ..runner import _encode, encoded, prefill, prepared, respond
from ..tasks import Task
from ..times.timing import Job, interleaved
from .looks import Seen, seen, skipping
from .plans import Ranked

LOOKED = (192, 64, 32)  # tokens per image that are chosen by given scores
FOUND = 64  # tokens among which a needle is looked for
STABLE = 32  # tokens of which it is asked whether the same ones are kept
NOISE = 0.02  # of the range
PLACES = 3  # places along each side of a picture
TIMED = 64  # tokens per image at which methods are timed
RANKED_MAPS = 8  # prompts of which whole maps are decomposed
ANSWER = 10  # tokens
PROMPTS = 2  # that are counted and timed
PLACE_WORDS = {"top", "middle", "bottom", "left", "center", "right", "above", "below", "line", "column"}
NEEDLES = {"reading-short": "labels", "small-detail": "tags"}
NEEDLE_SEED = 9  # of pictures that neither training nor the evaluation set shows


def tower() -> str:
    """How attention of the CLS token is called in results."""
    return "[CLS]"


def ranked_key(name: str, keep: int) -> str:
    """Key of the answers with tokens chosen by a score."""
    return f"{name}@{keep}"


def skip_key(layer: int) -> str:
    """Key of the answers where visual tokens skip a layer."""
    return f"skip@{layer}"


class Probes:
    """All probes of one model on one task.

    Args:
        model, processor: as loaded by transformers.
        task: what is answered with chosen tokens.
        ledger: where pieces are noted.
        samples: prompts that are looked into.
        batch: samples per batch.
        rounds: timed rounds that count.
        tick: called with what was measured.
    """

    def __init__(
        self, model: Any, processor: Any, task: Task, ledger: Ledger, *, samples: int = 60, batch: int = 16,
        rounds: int = 3, tick: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.task, self.ledger = model, processor, task, ledger
        self.samples, self.batch, self.rounds, self.tick = samples, batch, rounds, tick or (lambda what: None)
        self.depth = adapt(model).decoder_layers()

    def _noted(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.ledger:
            self.ledger.put(name, make())
            self.tick(name)
        return self.ledger[name]

    def _single(self, wanted: Callable[[Any], bool] = lambda sample: True) -> list[Any]:
        """Samples with one picture and one turn, spread over the task."""
        some = [s for s in self.task.samples if len(s.images) == 1 and not getattr(s, "history", None) and wanted(s)]
        return some[:: max(1, len(some) // self.samples)][: self.samples]

    def _batches(self, samples: Sequence[Any]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        for start in range(0, len(samples), self.batch):
            part = list(samples[start : start + self.batch])
            yield part, prepared(self.model, self.task.inputs(self.processor, part))

    # -- inside the stock model ----------------------------------------------------------------------------------------

    def looks(self) -> dict[str, Any]:
        """Rank correlations between blocks and between layers, attention by kind of token, states, ranks of maps."""
        return self._noted("looks", self._looks)

    def _looks(self) -> dict[str, Any]:
        found: dict[str, Any] = {"tower": [], "layers": [], "rank": []}
        mass: dict[str, list[list[float]]] = {"text": [], "image": []}
        states: dict[str, list[list[float]]] = {"text": [], "image": []}
        for part, fed in self._batches(self._single()):
            here = seen(self.model, fed)
            for row in range(len(part)):
                found["tower"].append(here.blocks_alike(row).tolist())
                found["layers"].append(here.alike(row).tolist())
                for kinds, values in ((mass, here.mass(row)), (states, here.steady(row))):
                    kinds["text"].append(values[0])
                    kinds["image"].append(values[1])
                if len(found["rank"]) < RANKED_MAPS:
                    found["rank"].append(here.rank(row))
        return found | {"mass": mass, "states": states}

    def place(self) -> dict[str, list[list[float]]]:
        """Share of each place of the picture in [CLS] attention and in that of FastV's layer, everything having been everywhere."""
        return self._noted("place", self._place)

    def _place(self) -> dict[str, list[list[float]]]:
        some = self._single(lambda s: not PLACE_WORDS & set(s.question.lower().split()))
        some, early = some[: self.samples // 2], min(1, self.depth - 1)
        total = {name: np.zeros((len(some), PLACES**2)) for name in (tower(), f"layer {early}")}
        for down in range(PLACES):
            for right in range(PLACES):
                moved = [replace(s, images=[_rolled(s.images[0], down, right)]) for s in some]
                at = 0
                for part, fed in self._batches(moved):
                    here = seen(self.model, fed)
                    for row, (cls, attention) in enumerate(zip(*_scores(here, early, part), strict=True)):
                        for name, score in ((tower(), cls), (f"layer {early}", attention)):
                            total[name][at + row] += _places(score) / PLACES**2
                    at += len(part)
        return {name: values.tolist() for name, values in total.items()}

    def stable(self) -> dict[str, list[float]]:
        """Jaccard index of the tokens kept with and without faint noise, by plan and sample."""
        return self._noted("stable", self._stable)

    def _stable(self) -> dict[str, list[float]]:
        plans = {f"fastv:layer={i}": Plan.of(f"fastv:layer={i}", STABLE) for i in range(1, self.depth)}
        plans |= {name: Plan.of(name, STABLE) for name in ("fastervlm", "flashvlm", "trim", "simignore")}
        found: dict[str, list[float]] = {name: [] for name in plans}
        for part, fed in self._batches(self._single()):
            faint = [replace(s, images=[_noisy(image) for image in s.images]) for s in part]
            other = prepared(self.model, self.task.inputs(self.processor, faint))
            for name, plan in plans.items():
                kept = []
                for one in (fed, other):
                    with compress(self.model, plan, processor=self.processor) as run:
                        prefill(self.model, one)
                    assert run.report is not None
                    kept.append([set(image.survivors.tolist()) for image in run.report.images])
                found[name] += [len(a & b) / len(a | b) for a, b in zip(*kept, strict=True)]
        return found

    def needle(self) -> dict[str, Any]:
        """Whether the patches of the text that is asked for are among those looked at most, by layer and picture."""
        return self._noted("needle", self._needle)

    def _needle(self) -> dict[str, Any]:
        drawn, recall, found, chances, n = _needles(self.samples), [], [], [], 1
        from .. import tasks

        task = tasks.testbed_task(limit=1)
        for start in range(0, len(drawn), self.batch):
            part = drawn[start : start + self.batch]
            here = seen(self.model, prepared(self.model, task.inputs(self.processor, [s for s, _ in part])))
            for row, (_, needle) in enumerate(part):
                scores = [
                    here.paid(i, row, here.asks(row)[-1:]).mean((0, 1))[here.image[row]] for i in sorted(here.layers)
                ]
                n = len(scores[0])
                hits = [len(needle & set(score.topk(min(FOUND, n)).indices.tolist())) for score in scores]
                recall.append([hit / len(needle) for hit in hits])
                found.append([hit == len(needle) for hit in hits])
                chances.append(float(np.prod([(FOUND - i) / (n - i) for i in range(len(needle))])))
        method: Any = registry.get("gemfilter")()
        layer = method.layer(self.depth)
        return {"recall": recall, "found": found, "chance": statistics.mean(chances), "tokens": n, "layer": layer}

    # -- answers -------------------------------------------------------------------------------------------------------

    def ranked(self) -> dict[str, Any]:
        """Right answers, by sample, with tokens chosen by given scores, and where visual tokens skip a layer."""
        slices = self.task.slices()
        order = sorted(self.task.samples, key=lambda s: slices.index(s.slice))
        right: dict[str, list[bool]] = {}
        for number, (part, fed) in enumerate(self._batches(order)):
            for key, values in self._noted(f"ranked|{number}", partial(self._answers, part, fed)).items():
                right.setdefault(key, []).extend(values)
        return {"slices": [sample.slice for sample in order], "right": right}

    def _answers(self, part: list[Any], fed: dict[str, Any]) -> dict[str, list[bool]]:
        def plan(keep: int, scores: Sequence[Any] = ()) -> Plan:
            return Plan.of(Ranked(iter(scores)), keep)

        features = encoded(self.model, fed, [Entry(STOCK, None), Entry("ranked", plan(LOOKED[0]))])
        here, found = seen(self.model, fed), {}
        sources = {f"layer {i}": _scores(here, i, part) for i in range(self.depth)}
        scores = {tower(): sources["layer 0"][0]} | {name: attention for name, (_, attention) in sources.items()}
        for keep in LOOKED:
            for name, given in scores.items():
                found[ranked_key(name, keep)] = self._right(part, fed, plan(keep, given), features)
        image = adapt(self.model).placeholders(fed["input_ids"], fed)
        for layer in range(self.depth):
            with skipping(self.model, layer, image):
                found[skip_key(layer)] = self._right(part, fed, None, features)
        from .evidence import STOCK_KEY

        return found | {STOCK_KEY: self._right(part, fed, None, features)}

    def _right(self, part: list[Any], fed: dict[str, Any], plan: Plan | None, features: Any) -> list[bool]:
        said = respond(self.model, self.processor, fed, plan, features, ANSWER).said
        return [bool(self.task.correct(text, sample)) for text, sample in zip(said, part, strict=True)]

    # -- time ----------------------------------------------------------------------------------------------------------

    def costs(self, plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
        """Tokens and FLOPs of plans, the latter over the uncompressed model's, by plan; those that refuse are left out."""
        return self._noted(f"costs|{_named(plans)}", partial(self._costs, plans))

    def _costs(self, plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
        fed = self._few()
        stock, found = count(self.model, fed), {}
        for plan in plans:
            try:
                cost = count(self.model, fed, plan, processor=self.processor, stock=stock)
                with compress(self.model, plan, processor=self.processor) as run:
                    prefill(self.model, fed)
            except FoveateError:
                continue
            assert run.report is not None
            full = run.report.tokens_in / len(run.report.images)
            found[str(plan)] = {
                "method": plan.steps[0].method.name, "full": full, "tokens": run.report.layer_average,
                "flops": cost.prefill / stock.prefill,
            }  # fmt: skip
        return found

    def times(self, plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
        """Times of plans that run, by plan: "prefill" and "whole" over the uncompressed model's, "choosing" over its prefill."""
        return self._noted(f"times|{_named(plans)}", partial(self._times, plans))

    def _times(self, plans: Sequence[Plan]) -> dict[str, dict[str, Any]]:
        fed, jobs = self._few(), {}
        named: dict[str, Plan | None] = {STOCK: None} | {str(plan): plan for plan in plans}
        seconds: dict[str, list[float]] = {label: [] for label in named}
        for label, plan in named.items():
            jobs[f"prefill|{label}"] = self._job(plan, fed, False, [])
            jobs[f"whole|{label}"] = self._job(plan, fed, True, seconds[label])
        times, found = interleaved(jobs, self.rounds, device=str(next(self.model.parameters()).device)), {}
        for label in map(str, plans):
            found[label] = {
                what: times[f"{what}|{label}"].over(times[f"{what}|{STOCK}"]) for what in ("prefill", "whole")
            }
            found[label]["choosing"] = statistics.median(seconds[label][1:]) / times[f"prefill|{STOCK}"].median()
        return found

    def _few(self) -> dict[str, Any]:
        some = self._single()
        return prepared(self.model, self.task.inputs(self.processor, some[:: max(1, len(some) // PROMPTS)][:PROMPTS]))

    def _job(self, plan: Plan | None, fed: dict[str, Any], whole: bool, seconds: list[float]) -> Job:
        features: list[Any] = []  # encoded in the warm-up round

        @contextmanager
        def go() -> Iterator[Callable[[], Any]]:
            with nullcontext() if plan is None else compress(self.model, plan, processor=self.processor) as run:
                if not whole and not features:
                    features.append(_encode(self.model, fed))
                yield lambda: self._written(fed) if whole else prefill(self.model, fed, features[0])
                if whole and run is not None and run.report is not None:
                    seconds.append(run.report.seconds)

        return go

    @torch.inference_mode()
    def _written(self, fed: dict[str, Any]) -> Any:
        return self.model.generate(**fed, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)


def _named(plans: Sequence[Plan]) -> str:
    return "|".join(map(str, plans))


# -- pictures and scores -----------------------------------------------------------------------------------------------


def _scores(here: Seen, layer: int, part: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(n,) of each picture, sample by sample: attention of the CLS token, and of the last prompt token in a layer."""
    cls, last = list(here.cls(max(here.blocks))), []
    for row, sample in enumerate(part):
        paid = here.paid(layer, row, here.asks(row)[-1:]).mean((0, 1))[here.image[row]]
        last += list(paid.chunk(len(sample.images)))
    return cls, last


def _rolled(image: Any, down: int, right: int) -> Any:
    """A picture shifted around by thirds."""
    values = np.asarray(image)
    high, wide = (side // PLACES for side in values.shape[:2])
    return _image(np.roll(values, (down * high, right * wide), (0, 1)))


def _noisy(image: Any) -> Any:
    values = np.asarray(image, dtype=np.float32)
    return _image(values + _draw(image).normal(0, 255 * NOISE, values.shape))


def _places(score: Any) -> np.ndarray:
    """(PLACES ** 2,) share of each place in a square picture's score (n,)."""
    side = round(len(score) ** 0.5)
    grid = score.float().cpu().numpy().reshape(PLACES, side // PLACES, PLACES, side // PLACES)
    return grid.sum((1, 3)).flatten() / grid.sum()


def _needles(n: int) -> list[tuple[Any, set[int]]]:
    """New questions of the testbed about text in a picture, each with the patches of that text."""
    import random

    from ...testbed import questions, scenes
    from ...testbed.evaluation import Sample
    from ...testbed.words import DENSE_INDEX, DIGITS, LETTERS

    letters = [DENSE_INDEX[f"'{c}"] for c in LETTERS + DIGITS]
    found: list[tuple[Any, set[int]]] = []
    for place, (name, kind) in enumerate(NEEDLES.items()):
        seed = scenes.EVALUATION_SEEDS + (NEEDLE_SEED << 32) + (place << 24)
        wanted = len(found) + (n + place) // len(NEEDLES)
        while len(found) < wanted:
            scene, seed = scenes.draw(seed, kind), seed + 1
            turn = questions.ask(scene, random.Random(seed), name)
            if turn is None or turn.about is None:
                continue
            words = [DENSE_INDEX[turn.about.colour], DENSE_INDEX[turn.about.kind]]
            shown = scene.labels[:, words].all(1) & scene.labels[:, letters].any(1)
            if patches := set(np.flatnonzero(shown).tolist()):
                sample = Sample(f"needle-{len(found)}", name, [scene.image], turn.question, turn.answer)
                found.append((sample, patches))
    return found
