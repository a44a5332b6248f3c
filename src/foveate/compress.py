"""``foveate.compress``: attach a plan to a model that is in use, and take it off again.

One forward pre-hook on the top-level model shortens the prompt of every prefill: ids, mask, positions, labels, token
types and features together. ``generate`` stays stock and still returns prompt and answer. Nothing of a call is kept on
the model: a thread's current call lives in a thread-local, a conversation's memory on its cache.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnsupportedError
from .families import Family, adapt
from .plan import Plan
from .report import ImageReport, Report, Stopwatch
from .stages import cache as caches
from .stages import connector, encoder
from .stages.follow import Cut, recount, shorten
from .tokens import Kind

_attached: weakref.WeakKeyDictionary[nn.Module, Run] = weakref.WeakKeyDictionary()
PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images", "image_patches")
READY = ("input", "connector")  # stages that exist


def compress(
    model: nn.Module,
    plan: object,
    *,
    keep: object = None,
    positions: str | None = None,
    processor: Any = None,
    split: str | None = None,
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
        positions: "original" (kept tokens keep their position ids) or "contiguous".
        processor: only read for its special tokens, by methods that look at the question.
        split: how a "/total" budget is shared over the images of a prompt: "proportional" or "equal".

    Returns:
        The run, already attached.

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
        UnsupportedError: the model cannot be compressed this way, or a run is attached to it already.
    """
    return Run(model, Plan.of(plan, keep, positions, split), processor)


class Run:
    """A plan attached to a model. Removing it leaves the model as it was.

    Attributes:
        plan: what runs.
        family: the adapter that was found for the model.
        reports: of the last call in each thread that made one; see :attr:`report`.
    """

    def __init__(self, model: nn.Module, plan: Plan, processor: Any = None) -> None:
        self.plan = plan
        self.modules = _layers_of(model)
        inner = self.modules[-1]
        if inner in _attached:
            raise UnsupportedError(
                f"{type(inner).__name__} is already compressed by {_attached[inner].plan}",
                hint='remove that run first, or write both into one plan: "first:keep=0.5 > second:keep=0.5"',
            )
        for step in plan.steps:
            if step.stage not in READY:
                raise UnsupportedError(
                    f"stage {step.stage!r} of {step.method.name} is not available", hint=f"stages: {', '.join(READY)}"
                )
        self.family: Family = adapt(inner)
        self._special = _special_ids(inner, processor)
        self._needs_question = any("question" in s.method.card.needs for s in plan.steps)
        self._here = threading.local()
        self._last: Report | None = None
        self._undo: list[Callable[[], None]] = []
        try:
            self._undo += encoder.watch(self.family, plan)
            for module in self.modules:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after, with_kwargs=True, always_call=True)
                self._undo += [before.remove, after.remove]
        except Exception:
            self._take_off()
            raise
        _attached[inner] = self

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
        self._take_off()
        if _attached.get(self.modules[-1]) is self:
            del _attached[self.modules[-1]]

    def _take_off(self) -> None:
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Run {self.plan} on {self.family.name}, {'attached' if self.active else 'removed'}>"

    # -- one call --------------------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        # A PEFT model calls the model it wraps: the outermost hook does the work.
        self._here.depth = getattr(self._here, "depth", 0) + 1
        if self._here.depth > 1:
            return None
        self._here.ending = None
        kwargs = _named(module, args, kwargs)
        past = kwargs.get("past_key_values")
        memory = caches.memory_of(past)
        new = self._prompt(kwargs, past, memory)
        if new is None and memory is not None:
            new = self._later(kwargs, past, memory)
        return None if new is None and not args else ((), new or kwargs)

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any):
        self._here.depth -= 1
        if self._here.depth:
            return None
        memory = caches.memory_of(kwargs.get("past_key_values"))
        if memory is not None:
            memory.prepared = False
        ending, self._here.ending = self._here.ending, None
        if ending is not None and output is not None:
            ending(_cache_in(output) or kwargs.get("past_key_values"))
        return None

    def _prompt(self, kwargs: dict[str, Any], past: Any, memory: caches.Memory | None) -> dict[str, Any] | None:
        """The call's arguments with its images compressed, or None if it has none."""
        encoded = dict(kwargs.get("mm_encoder_outputs") or {})
        pixels = [name for name in PIXELS if kwargs.get(name) is not None]
        if not pixels and encoded.get("image") is None:
            return None
        ids = kwargs.get("input_ids")
        if ids is None:
            raise UnsupportedError(
                "the call has images but inputs_embeds instead of input_ids, so that its visual tokens cannot be told apart",
                where=f"family {self.family.name}",
                hint="pass input_ids, or merge an image into inputs_embeds after compressing it yourself",
            )
        kwargs = dict(kwargs)
        for modality in ("image", "video"):
            arguments = self.family.encoder_arguments(kwargs, modality)
            if encoded.get(modality) is None and any(name in arguments for name in PIXELS):
                function = getattr(self.family.core, f"get_{modality}_features")
                encoded[modality] = function(**arguments, return_dict=True)
        for name in pixels:
            del kwargs[name]
        kwargs["mm_encoder_outputs"] = encoded
        output = encoded.get("image")
        if output is None:
            self._done(Report(str(self.plan), (), ids.shape[1], ids.shape[1], 0, ("video is not compressed yet: untouched",)))
            return self._later(kwargs, past, memory) or kwargs
        carried = encoder.encoded_of(output)
        if carried is None:
            raise UnsupportedError(
                "the image features were not encoded under this run",
                where=f"family {self.family.name}",
                hint="no prefill_chunk_size; encode (get_image_features) while the run is attached",
            )
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise UnsupportedError(
                "the attention mask is not two-dimensional, as with a static cache or a mask of your own",
                where=f"family {self.family.name}",
                hint="no cache_implementation, and a (batch, length) mask",
            )
        if past is not None:
            caches.check_supported(past)
        return self._shortened(kwargs, output, carried, past, memory)

    def _shortened(
        self, kwargs: dict[str, Any], output: Any, carried: encoder.Encoded, past: Any, memory: caches.Memory | None
    ) -> dict[str, Any] | None:
        family, ids, mask = self.family, kwargs["input_ids"], kwargs.get("attention_mask")
        watch = Stopwatch(ids.device)
        length = ids.shape[1]
        valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, mask.shape[1] - length :].bool()
        prompts, repeat = connector.find_pictures(family, ids, kwargs, output, carried)
        full = {id(p): p.layout for prompt in prompts for p in prompt}
        for sample, pictures in enumerate(prompts):
            row = sample * repeat
            question = None
            if pictures and self._needs_question:
                question = connector.question_embeddings(family, ids[row], valid[row], self._special)
            connector.reduce(family, self.plan, pictures, question)
        everything = [p for prompt in prompts for p in prompt]
        touched = any(p.asked and min(p.asked) < p.counts[0] for p in everything)
        if not touched:
            self._done(self._summary(everything, full, length, length, watch))
            return self._later(kwargs, past, memory) or kwargs

        keep = valid.clone()
        features, planes = [], []
        for sample, pictures in enumerate(prompts):
            for row in range(sample * repeat, (sample + 1) * repeat):
                for p in pictures:
                    keep[row, p.places] = False
                    keep[row, p.places[p.reduction.anchor]] = True
                    features.append(p.x)
                    planes.append(p.planes)
        # Padding leaves with the rest, unless all of it is needed to keep the rows equally long.
        right = mask is not None and not bool(valid[:, -1].all())
        cut = Cut.keeping(keep, right)
        if cut.removed == 0 and not cut.all_alive:
            cut = Cut(torch.arange(length, device=ids.device).expand_as(ids), keep, length, False)
        counted = 0 if past is None else int(past.get_seq_length())
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = family.positions(kwargs, counted)
        new = shorten(kwargs, cut, valid, positions, family.pad_token_id)
        if memory is not None and memory.back is not None:
            new["position_ids"] = new["position_ids"] - memory.back
        back = None
        if self.plan.positions == "contiguous":
            new["position_ids"], back = recount(new["position_ids"], cut.alive)
        joined = [torch.cat(stack) for stack in zip(*planes, strict=True)]
        new["mm_encoder_outputs"] = {**kwargs["mm_encoder_outputs"], "image": family.replaced(output, features, joined)}
        stored = 0 if past is None else caches.stored_columns(past)
        earlier = self._earlier(mask, memory, stored, counted, cut.alive)
        alive = cut.alive if earlier is None else torch.cat([earlier, cut.alive], 1)
        whole = cut.all_alive and (earlier is None or bool(earlier.all()))
        new["attention_mask"] = self._mask(kwargs, cut, alive, whole, memory)
        if memory is not None:
            memory.prepared = True
        renumbered = back is not None and bool((back != 0).any())

        def ending(cache: Any) -> None:
            if cache is not None:
                caches.remember(cache, cut.removed, alive, back if renumbered else None, renumbered or not whole)

        self._here.ending = ending
        self._done(self._summary(everything, full, length, cut.index.shape[1], watch))
        return new

    def _earlier(self, mask, memory, stored: int, counted: int, alive: Tensor) -> Tensor | None:
        """(b, stored) which columns of an earlier turn are not padding; None if there is no earlier turn."""
        if not stored:
            return None
        if memory is not None:
            return memory.columns(None if mask is None else mask[:, :counted], stored, 0)
        if mask is not None and mask.shape[1] >= counted:
            return mask[:, :stored].bool()
        return torch.ones(len(alive), stored, dtype=torch.bool, device=alive.device)

    def _mask(self, kwargs: dict[str, Any], cut: Cut, alive: Tensor, whole: bool, memory) -> Tensor | None:
        if cut.removed == 0 and memory is None:
            return kwargs.get("attention_mask")
        gap = memory.removed if memory is not None else 0
        if whole and kwargs.get("past_key_values") is not None:
            return None
        # Without a cache the library reads gaps in position ids as borders of packed sequences, unless it is given a mask.
        hidden = torch.zeros(len(alive), gap, dtype=torch.bool, device=alive.device)
        return torch.cat([hidden, alive], 1).long()

    def _later(self, kwargs: dict[str, Any], past: Any, memory: caches.Memory | None) -> dict[str, Any] | None:
        """Arguments of a call on a cache that holds a shortened prompt: decoding, or a turn without new images."""
        if memory is None:
            return None
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        given = kwargs.get("attention_mask")
        if given is not None and (not isinstance(given, Tensor) or given.ndim != 2):
            raise UnsupportedError("a later call needs a two-dimensional attention mask", hint="leave the mask to generate")
        memory.prepared = True
        new = dict(kwargs)
        new["attention_mask"] = memory.mask(given, caches.stored_columns(past), ids.shape[1])
        if memory.back is not None:
            positions = kwargs.get("position_ids")
            if positions is None:
                positions = self.family.positions(kwargs, int(past.get_seq_length()))
            back = memory.back
            if back.shape[-2] != positions.shape[-2]:
                back = back.repeat_interleave(positions.shape[-2] // back.shape[-2], -2)
            new["position_ids"] = positions - back
        return new

    # -- what happened ---------------------------------------------------------------------------------------------

    def _done(self, report: Report) -> None:
        self._here.report = self._last = report

    def _summary(self, pictures, full, before: int, after: int, watch: Stopwatch) -> Report:
        names = [str(s) for s in self.plan.steps if s.stage in READY]
        images = []
        for p in pictures:
            layout = full[id(p)]
            structure = layout.n - p.counts[0]
            images.append(
                ImageReport(
                    p.sample,
                    p.ordinal,
                    p.counts[0],
                    p.counts[-1],
                    tuple(zip(names, p.asked, p.counts[1:], strict=True)),
                    structure,
                    int((p.layout.kind != Kind.CONTENT).sum()),
                    p.reduction.anchor.to("cpu"),
                    layout.grids,
                    layout.boxes,
                    layout.tile,
                    layout.row,
                    layout.col,
                    layout.kind,
                )
            )
        return Report(str(self.plan), tuple(images), before, after, self.family.decoder_layers(), (), watch.stop())


def _layers_of(model: nn.Module) -> list[nn.Module]:
    """The model and, for a PEFT model, what it wraps, outermost first; the last is the transformers model."""
    if not isinstance(model, nn.Module):
        raise UnsupportedError(f"{type(model).__name__} is not a model", hint="pass pipeline.model, not the pipeline")
    found = [model]
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        found += [m for m in (getattr(model, "base_model", None), model.get_base_model()) if isinstance(m, nn.Module)]
        found = list(dict.fromkeys(found))
    if not hasattr(found[-1], "config") or not hasattr(found[-1], "get_input_embeddings"):
        raise UnsupportedError(
            f"{type(found[-1]).__name__} is not a transformers model", hint="AutoModelForImageTextToText.from_pretrained"
        )
    return found


def _special_ids(model: nn.Module, processor: Any) -> set[int]:
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = set(getattr(tokenizer, "all_special_ids", None) or ())
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            ids |= set(value if isinstance(value, list) else [] if value is None else [value])
    return ids


def _named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments of a forward call by name, next to the keyword ones."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args).arguments
    extra = bound.pop("kwargs", {})
    if "args" in bound:
        raise UnsupportedError(f"{type(module).__name__} takes unnamed arguments", hint="pass input_ids=... by name")
    return {**bound, **extra, **kwargs}


def _cache_in(output: Any) -> Any:
    """The cache in a model output or plain tuple, or None."""
    if (found := getattr(output, "past_key_values", None)) is not None:
        return found
    if isinstance(output, tuple):
        return next((item for item in output if hasattr(item, "get_seq_length") and hasattr(item, "layers")), None)
    return None
