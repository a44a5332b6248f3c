"""Where a result was made: versions and class of machine, without names of machines or people."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any


def environment(device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Versions, processor or GPU, threads, dtype and attention defaults that a number depends on."""
    import torch
    import transformers

    from .. import __version__

    found = {
        "foveate": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "dtype": dtype,
    }
    if str(device).startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


OUTSIDE = ("bench", "cli", "harness", "lens", "serving", "train")  # rooms that no answer depends on


def code() -> str:
    """A fingerprint of the source that answers depend on: what different code made does not belong in one table."""
    root, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in OUTSIDE:
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
