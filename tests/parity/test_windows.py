"""TextMonkey's filter and MustDrop's windows, against the authors' functions.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import pytest
import torch
from recorded import FOLDER, load, recordings

from foveate.methods.mustdrop_merge import MustDropMerge
from foveate.methods.textmonkey import TextMonkey
from foveate.tokens import View


@pytest.mark.parametrize("method", ["textmonkey", "mustdrop_a", "mustdrop_b", "mustdrop_c", "mustdrop_d"])
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("textmonkey")
def test_textmonkey(path):
    data = load(path)
    kept = TextMonkey()(View(data["x"], data["num_keep"])).anchor
    if data["stable_f64"]:
        assert kept.tolist() == data["kept"].sort().values.tolist()
    group = data["group"]
    assert sorted(group[kept].tolist()) == sorted(group[data["kept"].long()].tolist())


@recordings("mustdrop_[abcd]")
def test_mustdrop_windows(path):
    """Row 0 is the class token, which takes no part. The authors put merged windows first: sets are compared."""
    data = load(path)
    x, theirs = data["hidden"][1:], data["assign"][1:].long()
    side = round(len(x) ** 0.5)
    index = torch.arange(len(x))
    k = len(data["out"]) - 1
    view = View(x, k, row=index // side, col=index % side)
    reduction = MustDropMerge(window=int(data["window"][0]))(view).check()
    assert reduction.m == k
    mine = torch.empty(len(x), dtype=torch.long)
    mine[reduction.src] = reduction.dst
    if not data["stable_f64"]:  # ties: as many windows of the same sizes
        sizes = torch.bincount(mine).sort().values, data["out_size"][1:, 0].sort().values
        assert sizes[0].tolist() == sizes[1].tolist()
        return
    assert torch.equal(mine[:, None] == mine, theirs[:, None] == theirs)
    order = theirs[reduction.anchor]  # the row of theirs that each slot is
    torch.testing.assert_close(reduction.apply(x), data["out"][order], rtol=1e-4, atol=1e-4)
