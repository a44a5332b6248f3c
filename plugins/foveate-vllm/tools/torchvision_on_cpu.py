"""For development and CI on machines without a GPU only: let PyPI's torchvision be imported next to a CPU build of torch.

PyPI's torchvision for Linux is built for CUDA. Next to a CPU build of torch its library cannot be loaded, and importing
it fails at two operators that are then unknown. vLLM imports it, and needs its Python part only. Run with the Python
of an environment, this puts a hook in its site-packages that declares the two operators first; calling them still fails.
Never do this where a torchvision exists that matches torch.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

HOOK = """\
import importlib.abc
import sys


class Declare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", signature)
        return None


sys.meta_path.insert(0, Declare())
"""

if __name__ == "__main__":
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "torchvision_on_cpu.py").write_text(HOOK)
    (packages / "torchvision_on_cpu.pth").write_text("import torchvision_on_cpu\n")
    print(f"wrote {packages}/torchvision_on_cpu.py and .pth")
