"""EmbedLens, against the authors' function. ``test_recorded.py`` says what the recordings are."""

import os
from pathlib import Path

import numpy as np
import torch

from foveate.methods.embedlens import ALIVE, EmbedLens
from foveate.tokens import Extra, View

FOLDER = Path(os.environ.get("FOVEATE_PARITY") or Path(__file__).parent / "data")


def test_tokens_of_a_class_go_first():
    with np.load(FOLDER / "embedlens_dead.npz") as data:
        x, words = torch.from_numpy(data["embeds"]), torch.from_numpy(data["vocab"])
        method = EmbedLens(dead=tuple(data["target_ids"].tolist()), nearest=int(data["top_k"]))
        removed = sorted(data["removed"].tolist())
    view = View(x, len(x) - len(removed), extras={"vocabulary": Extra(words)})
    labels = method.classes(method.look(view)[1])
    assert (labels != ALIVE).nonzero()[:, 0].tolist() == removed
    assert sorted(set(range(len(x))) - set(method(view).anchor.tolist())) == removed
