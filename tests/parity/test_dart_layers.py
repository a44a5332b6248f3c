"""DART between the layers, against a port of it that was recorded.

``test_recorded.py`` says what the recordings are and how they are compared. The other port, whose shares are rounded down and
whose pivots take their turns in the order of a set, is compared in ``test_diversity.py`` as far as it can be.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, index, load, recordings

from foveate.methods.dart_layers import DARTLayers
from foveate.tokens import Extra, View


def test_there_are_recordings():
    assert list(FOLDER.glob("dart_angelslim_*.npz")), f"no recordings of dart_angelslim in {FOLDER}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@recordings("dart_angelslim")
def test_dart_in_angelslim(path, dtype):
    """Its text pivots come from all text, so that is what the view is given here."""
    data = load(path)
    start, n = int(data["sys_len"]), int(data["num_image"])
    keys, states = data["key"].to(dtype).transpose(0, 1).flatten(1), data["feature_map"].to(dtype)
    torch.testing.assert_close(keys.abs().sum(1), data["key_l1"].to(dtype), **CLOSE)
    image = torch.zeros(len(states), dtype=torch.bool)
    image[start : start + n] = True
    extras = {"layer_keys": keys[image], "text_keys": keys[~image], "text": states[~image]}
    k = max(1, round(n * (1 - data["drop_ratio"])))
    view = View(states[image], k, extras={name: Extra(value) for name, value in extras.items()})
    kept = DARTLayers(pivots=int(data["pivot_image"]), words=int(data["pivot_text"]))(view).anchor
    assert len(kept) == k
    if data.get("stable_f64", True):
        group = data["group"].long()
        assert group[kept].sort().values.tolist() == group[data["kept_image"].long()].sort().values.tolist()
        if "dups" not in path.stem:
            assert index(kept) == index(data["kept_image"])
