"""What all adapters share: a model that answers batches of conversations under a plan, and counts their visual tokens.

Prompts are padded on the left and answered in the order and in the batches in which they come, so that an adapter that
asks in the order of :func:`foveate.bench.runner.answers` gets the same answers to the last bit.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import StoppingCriteria, StoppingCriteriaList

from ..attach import compress
from ..bench.runner import prepared
from ..errors import UnsupportedError
from ..families import adapt
from ..plan import Plan
from ..report import ImageReport

SAMPLING = ("temperature", "top_p", "top_k")  # which mean nothing to a greedy answer


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's turn.

    Attributes:
        messages: ``{"role", "content"}``; the content is a list of ``{"type": "text", "text": ...}`` and
            ``{"type": "image"}``, one of the latter for each picture, at its place.
        images: the pictures, in the order of their places.
    """

    messages: list[dict[str, Any]]
    images: list[Image.Image] = field(default_factory=list)


@dataclass(frozen=True)
class Said:
    """An answer, and what it took.

    Attributes:
        text: the answer, cut before the first stop text, without space at its ends.
        images: pictures in the prompt.
        before, after: their visual tokens as the encoder gave them, and what the plan leaves of them in the end. Content
            only, as in :class:`foveate.report.ImageReport`; for the uncompressed model all placeholders.
        over_layers: their visual tokens, averaged over the language model's layers.
        read: tokens of the prompt, text included and padding not, less the visual ones dropped before the language model.
        written: tokens of the answer, the end token included.
    """

    text: str
    images: int
    before: int
    after: int
    over_layers: float
    read: int
    written: int


@dataclass
class Tally:
    """Sums over answers, for the line at the end of a run."""

    prompts: int = 0
    images: int = 0
    before: int = 0
    after: int = 0
    over_layers: float = 0.0
    read: int = 0
    written: int = 0

    def add(self, said: Iterable[Said]) -> None:
        """Count these answers."""
        for one in said:
            self.prompts += 1
            for name in (f.name for f in fields(self) if f.name != "prompts"):
                setattr(self, name, getattr(self, name) + getattr(one, name))

    def per_image(self) -> dict[str, float]:
        """Visual tokens per image: before, after, and averaged over the layers."""
        return {name: getattr(self, name) / max(1, self.images) for name in ("before", "after", "over_layers")}

    def __str__(self) -> str:
        each = self.per_image()
        return (
            f"{self.prompts} prompts, {self.images} images; visual tokens per image: {each['before']:.1f} before, "
            f"{each['after']:.1f} after, {each['over_layers']:.1f} averaged over the layers"
        )


class Answerer:
    """A model with its processor.

    Args:
        model: "testbed", a folder, or an id of a model hub.
        device: of torch.
        dtype: "auto" (that of the weights), "float32", "bfloat16" or "float16".

    Raises:
        UnsupportedError: the model cannot be loaded, or Foveate cannot see its visual tokens.
    """

    def __init__(self, model: str = "testbed", device: str = "cpu", dtype: str = "auto") -> None:
        self.model, self.processor = _load(model, device, dtype)
        self.family = adapt(self.model)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        tokenizer.padding_side = "left"  # answers start where prompts end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.seconds = 0.0  # in generate, so far

    def answer(
        self,
        prompts: Sequence[Prompt],
        plan: Plan | None = None,
        *,
        max_new_tokens: int = 64,
        until: Sequence[str] = (),
        **options: Any,
    ) -> list[Said]:
        """Answer a batch of prompts, those with pictures and those without in one call of ``generate`` each.

        Args:
            prompts: what is asked.
            plan: how to compress; None for the uncompressed model.
            max_new_tokens: the longest answer.
            until: texts at which an answer ends; they are not part of it.
            options: further arguments of ``generate``. Answers are greedy unless ``do_sample=True``, or a ``temperature``
                above 0 without ``do_sample``, asks for something else.
        """
        said: list[Said | None] = [None] * len(prompts)
        for some in (True, False):
            places = [i for i, prompt in enumerate(prompts) if bool(prompt.images) == some]
            if places:
                part = self._generate([prompts[i] for i in places], plan, max_new_tokens, tuple(until), options)
                for i, one in zip(places, part, strict=True):
                    said[i] = one
        return [one for one in said if one is not None]

    @torch.inference_mode()
    def _generate(
        self, prompts: list[Prompt], plan: Plan | None, longest: int, until: tuple[str, ...], options: dict[str, Any]
    ) -> list[Said]:
        texts = [self._text(prompt) for prompt in prompts]
        pictures = [prompt.images for prompt in prompts] if prompts[0].images else None
        # As transformers does: a chat format that writes the first token itself needs no second one.
        begins = getattr(getattr(self.processor, "tokenizer", self.processor), "bos_token", None)
        once = {"add_special_tokens": False} if begins and all(text.startswith(begins) for text in texts) else {}
        batch = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt", **once)
        fed = prepared(self.model, batch)
        width = fed["input_ids"].shape[1]
        arguments = {"max_new_tokens": longest, **_decoding(options)}
        if until:
            arguments["stopping_criteria"] = StoppingCriteriaList([_Until(self.processor, width, until)])
        start = time.perf_counter()
        if plan is None:
            out, report = self.model.generate(**fed, **arguments), None
        else:
            with compress(self.model, plan, processor=self.processor) as run:
                out = self.model.generate(**fed, **arguments)
            report = run.report
        new = out[:, width:].cpu()
        self.seconds += time.perf_counter() - start
        read = fed["attention_mask"].sum(1).tolist()
        visual = self.family.placeholders(fed["input_ids"], fed).sum(1).tolist()
        said = []
        for i, text in enumerate(self.processor.batch_decode(new, skip_special_tokens=True)):
            images = [] if report is None else report.of(i)
            before, after, over = _counts(images)
            if plan is None:
                before, after, over = visual[i], visual[i], float(visual[i])
            gone = sum(one.tokens_in + one.structure_in - len(one.kept) for one in images)
            length = self._length(new[i])
            said.append(Said(_cut(text, until), len(prompts[i].images), before, after, over, read[i] - gone, length))
        return said

    def _text(self, prompt: Prompt) -> str:
        if getattr(self.processor, "chat_template", None):
            return self.processor.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        if len(prompt.messages) > 1:
            raise UnsupportedError(
                f"a conversation of {len(prompt.messages)} messages, but the processor has no chat template",
                hint="one question per prompt, or a model with a chat template",
            )
        parts = [part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text"]
        return getattr(self.processor, "image_token", "<image>") * len(prompt.images) + "\n".join(parts)

    def _length(self, new: torch.Tensor) -> int:
        """Tokens of an answer (n,) up to its end token."""
        end = self.model.generation_config.eos_token_id
        ends = torch.isin(new, torch.tensor([] if end is None else np.atleast_1d(end).tolist(), dtype=new.dtype))
        return int(ends.int().argmax()) + 1 if ends.any() else len(new)


def picture(cell: Any) -> Image.Image:
    """A picture in any of the forms that data sets hold it in, in RGB.

    Args:
        cell: a Pillow image, the bytes of a file, ``{"bytes", "path"}`` as the datasets library stores it, a path, or an
            array (height, width) or (height, width, 3) of 8 bits.

    Raises:
        UnsupportedError: if it is none of these.
    """
    found = cell
    try:
        if isinstance(found, Mapping) and ("bytes" in found or "path" in found):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, (bytes, bytearray, memoryview)):
            found = Image.open(io.BytesIO(found))
        elif isinstance(found, (str, Path)):
            found = Image.open(found)
        elif isinstance(found, np.ndarray) and found.dtype == np.uint8:
            found = Image.fromarray(found)
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise UnsupportedError(f"not a picture that Pillow can read: {error}") from error
    if not isinstance(found, Image.Image):
        shape = f" {cell.shape} of {cell.dtype}" if isinstance(cell, np.ndarray) else ""
        raise UnsupportedError(
            f"{type(cell).__name__}{shape} is not a picture",
            hint="a Pillow image, bytes of an image file, a path, or an array (height, width, 3) of 8 bits",
        )
    return ImageOps.exif_transpose(found).convert("RGB")


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    if name == "testbed":
        from .. import testbed

        try:
            return testbed.load(device, "float32" if dtype == "auto" else dtype)
        except FileNotFoundError as error:
            raise UnsupportedError(str(error)) from error
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, ImportError) as error:
        raise UnsupportedError(
            f"{name} cannot be loaded as a vision-language model: {str(error).strip().splitlines()[0]}",
            hint="a folder written by save_pretrained, an id of a model hub that can be reached, or the word testbed",
        ) from error
    return model.to(device).eval(), processor


def _decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate``: greedy unless sampling is asked for."""
    given = dict(options)
    temperature = given.get("temperature")
    sample = given.pop("do_sample", None)
    sample = bool(temperature) if sample is None else bool(sample) and temperature != 0
    if not sample:
        given |= dict.fromkeys(SAMPLING)  # also those of the checkpoint, of which generate would warn
    return given | {"do_sample": sample}


def _counts(images: list[ImageReport]) -> tuple[int, int, float]:
    return sum(i.tokens_in for i in images), sum(i.tokens_out for i in images), sum(i.average for i in images)


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop, 1)[0]
    return text.strip()


class _Until(StoppingCriteria):
    """Ends a row when its answer holds one of some texts, wherever the boundaries of tokens lie."""

    def __init__(self, processor: Any, start: int, until: Sequence[str]) -> None:
        self.processor, self.start, self.until = processor, start, until

    def __call__(self, input_ids: Any, scores: Any, **unused: Any) -> torch.BoolTensor:
        texts = self.processor.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]
