"""The testbed: a small stock LLaVA that the project trained itself, its pictures, questions and training.

A measuring instrument for visual-token compression where no hub model can be reached: 192 x 192 px, 24 x 24 = 576
visual tokens + CLS as in LLaVA-1.5. What it says about methods holds for the testbed; repeat it on a model you use.

    model, processor = testbed.load()
    for sample, said in testbed.answer(model, processor, testbed.samples(["reading-short"], limit=20)): ...

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .evaluation import (
    Sample,
    answer,
    chance_level,
    correct,
    generate_scenes,
    inputs,
    make,
    messages,
    samples,
    summary,
    wilson,
)
from .questions import SLICES

__all__ = [
    "SLICES", "Sample", "answer", "chance_level", "correct", "generate_scenes", "inputs", "load", "make", "messages",
    "model_path", "samples", "summary", "train", "wilson",
]  # fmt: skip


def model_path() -> Path:
    """The folder of the shipped weights, or the one named by the environment variable FOVEATE_TESTBED.

    Raises:
        FileNotFoundError: if there are no weights in it.
    """
    path = Path(os.environ.get("FOVEATE_TESTBED") or Path(__file__).parent / "model")
    if not (path / "model.safetensors").exists():
        raise FileNotFoundError(
            f"foveate.testbed: no weights in {path}; install the wheel, which contains them, "
            "or make them with `foveate testbed train`"
        )
    return path


def load(device: str = "cpu", dtype: str = "float32", path: str | Path | None = None) -> tuple[Any, Any]:
    """The shipped model (in eval mode) and its processor, through the stock Auto classes.

    Args:
        device: a torch device.
        dtype: "float32", "bfloat16" or "float16".
        path: another folder with a testbed, such as one written by `train`.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = path or model_path()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).to(device).eval()
    return model, AutoProcessor.from_pretrained(path)


def train(*args: Any, **kwargs: Any) -> Path | None:
    """Train the testbed from nothing; see `foveate.testbed.training.train`."""
    from .training import train as run

    return run(*args, **kwargs)
