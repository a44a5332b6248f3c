"""A LLaVA that transformers 5 saved, for vLLM 0.32: ``python -m foveate_vllm.checkpoint FOLDER NEW_FOLDER``.

transformers 5 writes ``vision_tower.embeddings...``; vLLM reads ``vision_tower.vision_model.embeddings...``, as in most
published checkpoints. transformers loads files with either. Weights are copied tensor by tensor, everything else as it is.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

OLD, NEW = "vision_tower.", "vision_tower.vision_model."
INDEX = "model.safetensors.index.json"


def renamed(name: str) -> str:
    """The name of a tensor as vLLM reads it."""
    place = name.find(OLD)
    if place < 0 or name.startswith(NEW, place):
        return name
    return name[:place] + NEW + name[place + len(OLD) :]


def convert(folder: str | Path, new: str | Path) -> Path:
    """Copy a model's folder, its tensors renamed for vLLM; returns the new folder.

    Raises:
        FileNotFoundError: if there are no safetensors in it.
        FileExistsError: if the new folder is there already.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder, new = Path(folder), Path(new)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    new.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and path not in files:
            shutil.copyfile(path, new / path.name)
    for path in files:
        with safe_open(path, "pt") as file:
            tensors = {renamed(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            save_file(tensors, new / path.name, file.metadata())
    if (index := new / INDEX).exists():
        data = json.loads(index.read_text())
        data["weight_map"] = {renamed(name): file for name, file in data["weight_map"].items()}
        index.write_text(json.dumps(data, indent=2))
    return new


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(*sys.argv[1:])
