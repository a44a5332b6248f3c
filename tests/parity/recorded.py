"""Reading recordings: inputs, and what the authors' code answered. ``test_recorded.py`` says how they are compared."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get("FOVEATE_PARITY") or Path(__file__).parent / "data")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def recordings(method: str, but: str = "\n"):
    """Run a test on every recording of a method (or pattern), but for those whose names begin with ``but``."""
    found = {*FOLDER.glob(f"{method}_*.npz"), *FOLDER.glob(f"{method}.npz")}
    paths = sorted(p for p in found if not p.name.startswith(but))
    return pytest.mark.parametrize("path", paths, ids=[p.stem for p in paths])


def load(path: Path) -> dict:
    """Arrays as tensors, scalars as Python numbers."""
    with np.load(path) as data:
        return {k: v.item() if v.ndim == 0 else torch.from_numpy(v) for k, v in data.items()}


def index(values: torch.Tensor) -> list[int]:
    """Indices as plain numbers."""
    return values.long().tolist()
