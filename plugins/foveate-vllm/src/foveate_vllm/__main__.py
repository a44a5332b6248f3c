"""``python -m foveate_vllm``: which models are served, which methods vLLM can run, and why not the others."""

from __future__ import annotations

from foveate import FoveateError, Plan, registry

from . import MODELS
from .plans import check


def verdicts(model_type: str = "llava") -> dict[str, str]:
    """For every method with its default options: "" if vLLM can run it, else the reason."""
    found = {}
    for name in sorted(registry.classes()):
        try:
            check(Plan.of(name, keep=0.25, positions="contiguous"), model_type)
            found[name] = ""
        except FoveateError as error:
            found[name] = error.what
    return found


if __name__ == "__main__":
    print(f"models: {', '.join(MODELS)}")
    for name, reason in verdicts().items():
        print(f"{name:<20} {'refused: ' + reason if reason else 'runs'}")
