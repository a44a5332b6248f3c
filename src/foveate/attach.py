"""``foveate.compress``: attach a plan to a model that is in use, and take it off again.

One forward pre-hook on the top-level model shortens the prompt of every prefill: ids, mask, positions, labels, token
types and features together. ``generate`` stays stock and still returns prompt and answer. Nothing of a call is kept on
the model: what a call has to tell its cache travels in its arguments, and a conversation's memory lives on its cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .errors import UnsupportedError
from .families import Family, adapt
from .families.wrapped import named, unwrapped
from .plan import Plan
from .report import Report, Stopwatch
from .stages import cache as caches
from .stages import connector, encoder, evict, layers, prompt, rerun
from .stages.picture import Picture
from .stages.positions import Rotary
from .stages.question import Question, Relevance, Turns, question_ids, special_ids, text_columns
from .stages.strip import Strip
from .summary import summary

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images", "image_patches")
READY = ("input", "encoder", "connector", "layers", "cache")  # stages that exist
VIDEO = "video is not compressed yet: it passed untouched"


def compress(
    model: nn.Module,
    plan: object,
    *,
    keep: object = None,
    positions: str | None = None,
    processor: Any = None,
    split: str | None = None,
    relevance: Relevance | None = None,
) -> Run:
    """Compress the visual tokens of a transformers model from now on.

    Use the result as a context manager, or keep it and call :meth:`Run.remove`::

        with foveate.compress(model, "divprune", keep=0.25) as run:
            out = model.generate(**inputs)
        print(run.report)

    Args:
        model: a vision-language model of transformers >= 5.18, or a PEFT model around one.
        plan: text such as ``"divprune:keep=0.25"``, a method, a dict, or a :class:`foveate.Plan`.
        keep: budget of the step that names none: a share, a number of tokens per image, or text with a unit.
        positions: "original" (kept tokens keep their position ids), "contiguous", or "preserved": as original, and merged
            tokens carry up to 8 positions of those that went into them; "preserved:4" for up to 4.
        processor: only read for its special tokens and its chat template, by methods that look at the question.
        split: how a "/total" budget is shared over the images of a prompt: "proportional" or "equal".
        relevance: for methods that look at the question, a judge of your own, such as the text encoder that was trained with
            the vision tower. Called once for each image, when the first step needs the question, with the image's features
            before the connector, (n, d) (after it, where that joins tokens of the tower), and the token ids of the
            question, (q,); gives (n,), higher where a token fits better. Anything else is a MethodError.

    Returns:
        The run, already attached.

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
        UnsupportedError: the model cannot be compressed this way, or a run is attached to it already.
    """
    return Run(model, Plan.of(plan, keep, positions, split), processor, relevance)


class Run:
    """A plan attached to a model. Removing it leaves the model as it was.

    Attributes:
        plan: what runs.
        family: the adapter that was found for the model.
    """

    def __init__(self, model: nn.Module, plan: Plan, processor: Any = None, relevance: Relevance | None = None) -> None:
        self.plan = plan
        self.model, modules = unwrapped(model)
        if (other := _run_on(self.model)) is not None:
            raise UnsupportedError(
                f"{type(self.model).__name__} is already compressed by {other.plan}",
                hint='remove that run first, or write both into one plan: "first:keep=0.5 > second:keep=0.5"',
            )
        for step in plan.steps:
            if step.stage not in READY:
                raise UnsupportedError(
                    f"stage {step.stage!r} is not available yet",
                    where=f"method {step.method.name}",
                    hint=f"stages: {', '.join(READY)}",
                )
        self.family: Family = adapt(self.model)
        self._special = special_ids(self.model, processor)
        self._needs_question = any("question" in s.method.card.needs for s in plan.steps)
        self._relevance = relevance if self._needs_question else None
        self._turns = Turns.of(processor) if self._needs_question and processor is not None else None
        self._here = threading.local()
        self._last: Report | None = None
        self._undo: list[Callable[[], None]] = []
        self._rotary: Rotary | None = None
        self._inside = bool(layers.steps_of(plan) or evict.steps_of(plan))
        self._again = rerun.step_of(plan)
        try:
            if plan.carried:
                self._rotary = Rotary(self.family, plan.carried, self._undo)
            encoder.watch(self.family, plan, self._undo, Stopwatch, self._relevance is not None)
            if self._inside:
                layers.check(self.family, layers.steps_of(plan))
                evict.check(self.family, evict.steps_of(plan))
                layers.hook(self.family, layers.steps_of(plan), evict.steps_of(plan), self._here, self._undo)
            rerun.check(self.family, plan)
            if self._again is not None:
                rerun.hook(self.family, self._again, self._here, self._undo)
            for module in modules:
                self._undo.append(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                after = module.register_forward_hook(self._after, with_kwargs=True, always_call=True)
                self._undo.append(after.remove)
        except BaseException:
            self.remove()
            raise

    # -- for the user ----------------------------------------------------------------------------------------------

    @property
    def report(self) -> Report | None:
        """What the last compressed prompt of this thread lost (of any thread, if this one made no call), or None."""
        return getattr(self._here, "report", self._last)

    @property
    def active(self) -> bool:
        return bool(self._undo)

    def remove(self) -> None:
        """Take every hook off the model. Harmless when called again."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Run {self.plan} on {self.family.name}, {'attached' if self.active else 'removed'}>"

    def __reduce__(self):
        raise UnsupportedError(
            f"a model cannot be copied or pickled while {self.plan} is attached to it",
            hint="run.remove() first, and attach again to the copy",
        )

    # -- one call --------------------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if getattr(self._here, "first", None) is not None:
            return None  # the first of two runs
        kwargs = named(module, args, kwargs)
        past = kwargs.get("past_key_values")
        memory = caches.memory_of(past)
        images = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if (memory is not None and memory.prepared) or hasattr(images, prompt.ENDING):
            return None  # a wrapper around the model was called, and its hook has done the work
        self._here.call, self._here.close, self._here.ending = None, [], None
        new = self._prompt(kwargs, past, memory)
        if self._inside and self._here.call is None:
            if memory is not None and layers.shortened(past):
                memory.prepared = True
                fresh = (new["input_ids"] if new.get("input_ids") is not None else new["inputs_embeds"]).shape[1]
                self._here.call = layers.Later(self.family, caches.stored_columns(past), fresh)
            elif evict.steps_of(self.plan) and (ids := new.get("input_ids")) is not None and _empty(past):
                # A prompt without pictures has a cache all the same.
                base, none = prompt.Base.of(new), [list[Picture]() for _ in ids]
                new, call = layers.prefill(self.family, self.plan, new, new, none, 1, base, past, Stopwatch)
                self._here.call = call
                report = self._told([], ids.shape[1], ids.shape[1], (), call.took, [])
                self._here.close.append(lambda: self._done(_with_cache(report, call)))
        if self._rotary is not None:
            ending = _ending(new)
            self._rotary.during(None if ending is None else ending.carried)
        return None if new is kwargs else ((), new)

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if getattr(self._here, "first", None) is not None:
            return
        if self._rotary is not None:
            self._rotary.during(None)
        memory = caches.memory_of(kwargs.get("past_key_values"))
        if memory is not None:
            memory.prepared = False
        ending = _ending(kwargs) or getattr(self._here, "ending", None)
        call, close = getattr(self._here, "call", None), getattr(self._here, "close", ())
        self._here.call, self._here.close, self._here.ending = None, (), None
        if output is None:
            return
        cache = _cache_in(output) or kwargs.get("past_key_values")
        if ending is not None:
            if cache is not None:
                caches.remember(cache, ending.removed, ending.alive, ending.back, ending.needs_run)
            if (kwargs.get("mm_encoder_outputs") or {}).get("image") is not None:
                setattr(kwargs["mm_encoder_outputs"]["image"], prompt.ENDING, None)  # once
        if isinstance(call, layers.Prefill) and cache is not None:
            if ending is None:
                caches.remember(cache, 0, call.alive, None, False)
            call.remember(cache)
            if call.evictor is not None:
                call.evictor.finish(cache)
        for each in close:
            each()

    def _prompt(self, kwargs: dict[str, Any], past: Any, memory: caches.Memory | None) -> dict[str, Any]:
        """The call's arguments with its images compressed; the same object if nothing has to change."""
        encoded = kwargs.get("mm_encoder_outputs") or {}
        pixels = [name for name in PIXELS if kwargs.get(name) is not None]
        if not pixels and not any(output is not None for output in encoded.values()):
            if self._again is not None and kwargs.get("input_ids") is not None and _empty(past):
                return self._text(kwargs, past)
            return prompt.continued(self.family, self.plan, kwargs, past, memory)
        if kwargs.get("input_ids") is None:
            raise UnsupportedError(
                "the call has images, but inputs_embeds instead of input_ids: its visual tokens cannot be told apart",
                where=f"family {self.family.name}",
                hint="pass input_ids, and the images as pixels or mm_encoder_outputs",
            )
        given = kwargs
        if pixels:
            kwargs = self._encoded(kwargs, pixels)
            encoded = kwargs["mm_encoder_outputs"]
        notes = (VIDEO,) if encoded.get("video") is not None else ()
        output = encoded.get("image")
        if output is None:
            length = kwargs["input_ids"].shape[1]
            self._done(Report(str(self.plan), (), length, length, self.family.decoder_layers(), notes))
            return prompt.continued(self.family, self.plan, kwargs, past, memory)
        carried = encoder.encoded_of(output, self.plan, self._relevance is not None)
        if carried is None:
            raise UnsupportedError(
                "the image features were not encoded under this run",
                where=f"family {self.family.name}, plan {self.plan}",
                hint="encode (get_image_features) while the run is attached; no prefill_chunk_size",
            )
        watch = Stopwatch(kwargs["input_ids"].device)
        prompts, repeat = self._reduced(kwargs, output, carried)
        pictures = [p for prompt in prompts for p in prompt]
        before = after = kwargs["input_ids"].shape[1]
        gone = None
        if self._again is not None and pictures:
            gone = rerun.twice(
                self.family, self.plan, self._again, self._here, kwargs, output, prompts, repeat, past, memory
            )
        if gone is None and all(p.reduction is None for p in pictures):
            new = prompt.continued(self.family, self.plan, kwargs, past, memory)
            base = prompt.Base.of(kwargs) if self._inside else None
        else:
            count = 0 if self._rotary is None else self._rotary.count
            new = prompt.shortened(self.family, self.plan, kwargs, output, prompts, repeat, past, memory, count, gone)
            after, base = new["input_ids"].shape[1], _ending(new).base  # type: ignore[union-attr]
        stop, clocks, strips = watch.stop(), list(carried.seconds), list[Strip]()

        def seconds() -> float:
            return stop() + sum(each() for each in clocks)

        if self._inside and pictures:
            assert base is not None
            new, call = layers.prefill(self.family, self.plan, kwargs, new, prompts, repeat, base, past, Stopwatch)
            self._here.call, clocks, strips = call, [*clocks, call.took], call.strips
            # What happens between the layers is known when they have run.
            self._here.close.append(
                lambda: self._done(_with_cache(self._told(pictures, before, after, notes, seconds, strips), call))
            )
        else:
            self._done(self._told(pictures, before, after, notes, seconds, strips))
        return given if new is kwargs and not pixels else new

    def _text(self, kwargs: dict[str, Any], past: Any) -> dict[str, Any]:
        """A prompt of text under a plan that chooses among all tokens."""
        assert self._again is not None
        watch, rows, before = (
            Stopwatch(kwargs["input_ids"].device),
            len(kwargs["input_ids"]),
            kwargs["input_ids"].shape[1],
        )
        none = [list[Picture]() for _ in range(rows)]
        gone = rerun.twice(self.family, self.plan, self._again, self._here, kwargs, None, none, 1, past, None)
        new = prompt.shortened(self.family, self.plan, kwargs, None, none, 1, past, None, gone=gone)
        self._here.ending = new.pop(prompt.ENDING)
        self._done(self._told([], before, new["input_ids"].shape[1], (), watch.stop(), []))
        return new

    def _encoded(self, kwargs: dict[str, Any], pixels: list[str]) -> dict[str, Any]:
        """The arguments of a plain forward call as ``generate`` would hand them over: encoded."""
        encoded = dict(kwargs.get("mm_encoder_outputs") or {})
        rest = dict(kwargs)
        for modality in ("image", "video"):
            arguments = self.family.encoder_arguments(kwargs, modality)
            if encoded.get(modality) is None and (used := [name for name in pixels if name in arguments]):
                encoded[modality] = getattr(self.family.core, f"get_{modality}_features")(**arguments, return_dict=True)
                for name in used:
                    del rest[name]
        return rest | {"mm_encoder_outputs": encoded}

    def _reduced(
        self, kwargs: dict[str, Any], output: Any, carried: encoder.Encoded
    ) -> tuple[list[list[Picture]], int]:
        """The pictures of each prompt, reduced, and how many batch rows each prompt has."""
        family, ids = self.family, kwargs["input_ids"]
        prompts, repeat = connector.find_pictures(family, ids, kwargs, output, carried)
        text = text_columns(kwargs) if self._needs_question else None
        for sample, pictures in enumerate(prompts):
            question = None
            if pictures and text is not None:
                row = sample * repeat
                special = self._special.to(ids.device)
                words = question_ids(family, ids[row], text[row], special, self._turns)
                embeddings = self.model.get_input_embeddings()(words).detach()
                question = Question(words, embeddings, self._relevance)
            connector.reduce(family, self.plan, pictures, question)
        return prompts, repeat

    # -- what happened ---------------------------------------------------------------------------------------------

    def _told(self, *facts: Any) -> Report:
        return summary(self.plan, self.family, self._rotary, *facts)

    def _done(self, report: Report) -> None:
        self._here.report = self._last = report


def _ending(kwargs: dict[str, Any]) -> prompt.Ending | None:
    """What was noted about a prompt that was shortened, in the arguments of its call."""
    return getattr((kwargs.get("mm_encoder_outputs") or {}).get("image"), prompt.ENDING, None)


def _run_on(model: nn.Module) -> Run | None:
    hooks: Iterator[Any] = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in hooks if isinstance(owner, Run)), None)


def _with_cache(report: Report, call: layers.Prefill) -> Report:
    """A report, with what became of the cache."""
    evictor = call.evictor
    if evictor is None or not evictor.thinned:
        return report
    return replace(report, cache=tuple(evictor.thinned), cache_bytes=(evictor.before, evictor.after))


def _empty(cache: Any) -> bool:
    return cache is None or cache.get_seq_length() == 0


def _cache_in(output: Any) -> Any:
    """The cache in a model output or plain tuple, or None."""
    if (found := getattr(output, "past_key_values", None)) is not None:
        return found
    if isinstance(output, tuple):
        return next((item for item in output if hasattr(item, "get_seq_length") and hasattr(item, "layers")), None)
    return None
