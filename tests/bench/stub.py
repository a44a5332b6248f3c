"""A tiny random LLaVA, a processor made by hand, and questions about noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

import tiny
from foveate.bench.tasks import Task

SIDE = 24  # pixels of the tiny LLaVA's picture; 6 x 6 tokens


@dataclass
class Sample:
    slice: str
    question: str  # token ids with spaces between them
    answer: str
    images: list[Any] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    chance: float = 0.0


class Processor:
    """Token ids are their own text."""

    image_processor = None

    def batch_decode(self, ids, skip_special_tokens=True):
        return [" ".join(str(int(i)) for i in row) for row in ids]

    def __call__(self, samples):
        rows = [[tiny.BOS, *[tiny.IMAGE] * (36 * len(s.images)), *map(int, s.question.split())] for s in samples]
        width = max(map(len, rows))
        ids = torch.tensor([[tiny.PAD] * (width - len(r)) + r for r in rows])
        pixels = [torch.tensor(np.asarray(i)).permute(2, 0, 1) / 127.5 - 1 for s in samples for i in s.images]
        batch = {"input_ids": ids, "attention_mask": (ids != tiny.PAD).long()}
        return batch | ({"pixel_values": torch.stack(pixels).float()} if pixels else {})


def noise(seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def task(model, n: int = 6) -> Task:
    """Questions of unequal length over one or two pictures; half of the "right" answers are the model's own."""
    samples = []
    for i in range(n):
        question = " ".join(str(tiny.TEXT + 7 * i + j) for j in range(2 + i % 3))
        pictures = [noise(2 * i + j) for j in range(2 if i % 3 == 2 else 1)]
        samples.append(Sample("one" if i % 2 else "two", question, "", pictures))
    with torch.no_grad():
        for sample in samples[: n // 2]:
            batch = Processor()([sample])
            out = model.generate(**batch, max_new_tokens=3, do_sample=False)
            sample.answer = Processor().batch_decode(out[:, batch["input_ids"].shape[1] :])[0]
    return Task("stub", samples, lambda processor, part: processor(part), lambda said, s: said == s.answer, "a stub")
