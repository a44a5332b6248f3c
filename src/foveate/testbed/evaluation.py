"""The testbed's fixed evaluation set: making it, reading it, asking the model, scoring.

The set is a zip with `index.jsonl` (one question per line) and the pictures, so that reading it needs Pillow and
nothing else. Its seeds lie above every training seed, its handwritten digits are scans that training never shows,
and a quarter of its listed words never appear in training either.
"""

from __future__ import annotations

import io
import json
import math
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .questions import KIND_OF, SLICES, Turn

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature, LlavaProcessor

DATA = Path(__file__).parent / "data" / "evaluation.zip"
PER_SLICE = 160
_ORDER = tuple(SLICES)


@dataclass
class Sample:
    """One question: pictures (192 x 192 RGB), what was said before, what is asked now, the one right answer.

    chance: probability that a uniform guess among the answers of this type of question is right (0 for spelled
    answers).
    """

    id: str
    slice: str
    images: list[Image]
    question: str
    answer: str
    history: list[tuple[str, str]] = field(default_factory=list)
    chance: float = 0.0


# ------------------------------------------------------------------------------------------------------------------ making


def _turns(slice: str, seed: int, rng: random.Random, want: str | None) -> tuple[list[Any], list[Turn]]:
    """Pictures and conversation of one new sample; no turns if these pictures allow no such question."""
    from . import questions, scenes

    if slice == "two-images":
        drawn = [scenes.draw(seed, "shapes"), scenes.draw(seed + (1 << 34), "shapes")]
        turn = questions.about_two(drawn[0], drawn[1], rng)
        return drawn, [turn] if turn else []
    if slice == "later-turns":
        drawn = [scenes.draw(seed, rng.choice(("shapes", "shapes", "labels", "chart")))]
        turns = questions.conversation(drawn[0], rng, rng.randint(2, 4))
        return drawn, turns if len(turns) > 1 else []
    drawn = [scenes.draw(seed, KIND_OF.get(slice, "shapes"))]
    turn = questions.ask(drawn[0], rng, slice)
    return drawn, [turn] if turn and want in (None, turn.answer) else []


def generate_scenes(seed: int, n: int, slice: str | None = None, per_picture: int = 2) -> list[Sample]:
    """New samples from the generator, decided by `seed` and never among the training pictures.

    Args:
        seed: 0 is the seed of the packaged set; any other non-negative number gives fresh samples.
        n: samples per slice.
        slice: one of `SLICES`; None for all of them, in their order.
        per_picture: questions that share a picture.

    Raises:
        ValueError: on an unknown slice.
        ImportError: without scikit-learn, scikit-image and matplotlib, whose pictures, scans and fonts are used.
    """
    from .scenes import EVALUATION_SEEDS

    if slice is not None and slice not in SLICES:
        raise ValueError(f"testbed.generate_scenes: unknown slice {slice!r}; use one of {', '.join(SLICES)}")
    out: list[Sample] = []
    for name in [slice] if slice else SLICES:
        first = EVALUATION_SEEDS + (seed << 32) + (_ORDER.index(name) << 24)
        made: list[Sample] = []
        tries = 0
        while len(made) < n:
            rng = random.Random(first + tries)
            asked: set[str] = set()
            for _ in range(8 * per_picture):
                if len(asked) == per_picture or len(made) == n:
                    break
                want = ("yes", "no")[len(made) % 2] if name == "existence" else None
                drawn, turns = _turns(name, first + tries, rng, want)
                if not turns or turns[-1].question in asked:
                    continue
                *before, last = turns
                asked.add(last.question)
                history = [(t.question, t.answer) for t in before]
                images = [d.image for d in drawn]
                made.append(
                    Sample(f"{name}-{len(made):04d}", name, images, last.question, last.answer, history, last.chance)
                )
            tries += 1
        out += made
    return out


def _encode(image: Image) -> tuple[str, bytes]:
    """The smaller of lossless PNG and WebP at quality 85."""
    files = []
    for suffix, options in (("png", {"optimize": True}), ("webp", {"quality": 85, "method": 6})):
        buffer = io.BytesIO()
        image.save(buffer, suffix, **options)
        files.append((suffix, buffer.getvalue()))
    return min(files, key=lambda f: len(f[1]))


def make(out: str | Path, seed: int = 0, n: int = PER_SLICE, tick: Callable[[str], None] | None = None) -> Path:
    """Write `n` new samples per slice as a zip that `samples(path=...)` reads. `make(DATA)` writes the packaged set.

    Args:
        tick: called with the name of a slice when it is written.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    names: dict[bytes, str] = {}
    lines = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:  # a fixed date: the same seed gives the same bytes
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)

        for slice in SLICES:
            for sample in generate_scenes(seed, n, slice):
                pictures = []
                for image in sample.images:
                    raw = image.tobytes()
                    if raw not in names:
                        suffix, data = _encode(image)
                        names[raw] = f"{slice}/{len(names):04d}.{suffix}"
                        add(names[raw], data)
                    pictures.append(names[raw])
                line = {
                    "id": sample.id,
                    "slice": slice,
                    "images": pictures,
                    "question": sample.question,
                    "answer": sample.answer,
                }
                lines.append(json.dumps({**line, "history": sample.history, "chance": round(sample.chance, 4)}))
            if tick:
                tick(slice)
        add("index.jsonl", "\n".join(lines).encode())
    return out


# ----------------------------------------------------------------------------------------------------------------- reading


def samples(
    slices: Sequence[str] | None = None, limit: int | None = None, path: str | Path | None = None
) -> list[Sample]:
    """The fixed evaluation set, always in the same order.

    Args:
        slices: names to read; None for all.
        limit: at most this many per slice (the first ones).
        path: another zip, written by `make`.

    Raises:
        ValueError: on an unknown slice.
    """
    from PIL import Image

    if unknown := set(slices or ()) - set(SLICES):
        raise ValueError(f"testbed.samples: unknown slice {sorted(unknown)}; use some of {', '.join(SLICES)}")
    out: list[Sample] = []
    count: Counter[str] = Counter()
    with zipfile.ZipFile(path or DATA) as archive:
        pictures: dict[str, Image.Image] = {}
        for line in archive.read("index.jsonl").decode().splitlines():
            entry = json.loads(line)
            if (slices is not None and entry["slice"] not in slices) or (
                limit is not None and count[entry["slice"]] >= limit
            ):
                continue
            count[entry["slice"]] += 1
            for name in entry["images"]:
                if name not in pictures:
                    pictures[name] = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            entry["images"] = [pictures[name] for name in entry["images"]]
            entry["history"] = [tuple(turn) for turn in entry["history"]]
            out.append(Sample(**entry))
    return out


# ------------------------------------------------------------------------------------------------------ asking and scoring


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The conversation up to the question, for `processor.apply_chat_template`; two pictures are announced by words."""
    from .sequences import TWO_CONTENT

    content: list[dict[str, Any]] = []
    for image, words in zip(sample.images, TWO_CONTENT, strict=False):
        if len(sample.images) > 1:
            content.append({"type": "text", "text": words})
        content.append({"type": "image", "image": image})
    out: list[dict[str, Any]] = []
    for question, answer in sample.history:
        out.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        out.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        content = []
    out.append({"role": "user", "content": [*content, {"type": "text", "text": sample.question}]})
    return out


def inputs(processor: LlavaProcessor, samples: Sequence[Sample]) -> BatchFeature:
    """A left-padded batch for `model.generate`: input_ids and attention_mask (b, n), pixel_values (images, 3, 192, 192)."""
    texts = [processor.apply_chat_template(messages(s), add_generation_prompt=True, tokenize=False) for s in samples]
    return processor(images=[s.images for s in samples], text=texts, padding=True, return_tensors="pt")


def correct(prediction: str, sample: Sample) -> bool:
    """Exact match, ignoring case and space at the ends."""
    return prediction.strip().lower() == sample.answer.strip().lower()


def answer(
    model: Any, processor: LlavaProcessor, samples: Sequence[Sample], batch: int = 16, max_new_tokens: int = 10
) -> Iterator[tuple[Sample, str]]:
    """Greedy answers through the stock path (processor, `model.generate`, decode), in batches of samples of one slice."""
    import torch

    order = sorted(samples, key=lambda s: _ORDER.index(s.slice))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        fed = inputs(processor, part).to(model.device)
        fed["pixel_values"] = fed["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            out = model.generate(**fed, max_new_tokens=max_new_tokens, do_sample=False)
        said = processor.batch_decode(out[:, fed["input_ids"].shape[1] :], skip_special_tokens=True)
        yield from zip(part, said, strict=True)


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `right` out of `n`."""
    if n == 0:
        return 0.0, 1.0
    p, d = right / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return max(0.0, middle - half), min(1.0, middle + half)


def chance_level(samples: Sequence[Sample]) -> float:
    """What needs no picture: the better of a uniform guess per question type and always giving the commonest answer."""
    commonest = max(Counter(s.answer for s in samples).values()) / len(samples)
    return max(commonest, sum(s.chance for s in samples) / len(samples))


def summary(results: Sequence[tuple[Sample, str]]) -> list[dict[str, Any]]:
    """One row per slice, and one for "all": n, right, accuracy, low and high end of the 95 % interval, chance."""
    rows = []
    for name in [*SLICES, "all"]:
        part = [(s, said) for s, said in results if name in (s.slice, "all")]
        if part:
            right = sum(correct(said, s) for s, said in part)
            low, high = wilson(right, len(part))
            row = {
                "slice": name,
                "n": len(part),
                "right": right,
                "accuracy": right / len(part),
                "low": low,
                "high": high,
            }
            rows.append({**row, "chance": chance_level([s for s, _ in part])})
    return rows
