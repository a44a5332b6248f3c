"""Where a result was made: versions and class of machine, without names of machines or people."""

from __future__ import annotations

import os
import platform
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


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
