"""The authors' own functions and ours, on the same numbers.

``data`` holds inputs and what the authors' code answered (fp32, one thread). ``FOVEATE_PARITY`` may name another folder
of the same layout, recorded from other seeds: every file of the methods below that is found there is tested.

Where a recording says ``stable_f64 = False``, the authors' function run in float64 answers differently, so the answer
rests on ties or rounding: then only what ties cannot change is compared. In ``dups`` files rows occur several times, and
which of the copies was picked does not matter: their ``group`` is compared.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, index, load, recordings

from foveate.methods.divprune import DivPrune
from foveate.methods.fastervlm import FasterVLM
from foveate.methods.visionzip import VisionZip
from foveate.parts.merge import bipartite
from foveate.tokens import Extra, View


@pytest.mark.parametrize("method", ["divprune", "divprune_angelslim", "fastervlm", "visionzip", "tome"])
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("fastervlm")
def test_fastervlm(path):
    data = load(path)
    for attention, score, mask, kept in zip(*(data[k] for k in ("cls_attn", "score", "mask", "kept")), strict=True):
        n = attention.shape[-1]
        view = View(torch.zeros(n, 2), data["num_keep"], extras={"attention": Extra(attention)})
        torch.testing.assert_close(FasterVLM().score(view), score, **CLOSE)
        assert index(FasterVLM()(view).anchor) == index(kept) == index(mask.nonzero()[:, 0])


@recordings("divprune", but="divprune_angelslim")
def test_divprune(path):
    data = load(path)
    recorded, group = data["selected_in_order"].long(), data["group"].long()
    k, distinct = len(recorded), len(group.unique())
    assert k == round(data["ratio"] * len(data["x"]))
    view = View(data["x"], k)
    picked = DivPrune().order(view)
    assert index(DivPrune()(view).anchor) == sorted(picked.tolist()), "kept in position order"
    assert len(picked.unique()) == k, "no token twice"
    assert len(group[picked[:distinct]].unique()) == min(k, distinct), "copies only when nothing else is left"
    if data.get("stable_f64", True):
        assert group[picked].tolist() == group[recorded].tolist()
        if "dups" not in path.stem:
            assert picked.tolist() == recorded.tolist()
            assert sorted(picked.tolist()) == index(data["kept_sorted"])


@recordings("divprune_angelslim")
def test_divprune_in_angelslim(path):
    data = load(path)
    recorded, group = data["kept"].long(), data["group"].long()
    k, distinct = len(recorded), len(group.unique())
    assert k == max(1, round(len(data["x"]) * (1 - data["drop_ratio"])))
    kept = DivPrune()(View(data["x"], k)).anchor
    assert len(kept.unique()) == k
    if "dups" not in path.stem:
        assert kept.tolist() == recorded.tolist()
    elif k >= distinct:
        assert len(group[kept].unique()) == len(group[recorded].unique()) == distinct
    else:
        assert group[kept].sort().values.tolist() == group[recorded].sort().values.tolist()


@recordings("visionzip")
def test_visionzip(path):
    """Row 0 of the recordings is the CLS token, which ours does not pass on."""
    data = load(path)
    dominant, few = data["dominant"], data["contextual"]
    x, k = data["hidden"][1:], dominant + few
    extras = {"attention": Extra(data["cls_attn_row"][:, 1:]), "keys": Extra(data["metric"][1:])}
    reduction = VisionZip(contextual=few / k)(View(x, k, extras=extras)).check()
    kept = data["dominant_sorted"].long()[1:] - 1
    is_dominant = torch.isin(reduction.anchor, kept)
    assert reduction.anchor[is_dominant].tolist() == kept.tolist()
    assert reduction.m == k and len(data["out"]) == k + 1
    ours = reduction.apply(x)
    torch.testing.assert_close(ours[is_dominant], data["out"][1 : 1 + dominant], **CLOSE)
    # Targets with equal keys tie for what joins them; what joins the others does not depend on that.
    keys = data["metric"][1:][reduction.anchor[~is_dominant]]
    alone = (keys[:, None] == keys).all(-1).sum(1) == 1
    alone |= data.get("stable_f64", True)
    torch.testing.assert_close(ours[~is_dominant][alone], data["out"][1 + dominant :][alone], **CLOSE)


@recordings("tome")
def test_tome(path):
    data = load(path)
    n, metric, x, size = len(data["x"]), data["metric"], data["x"], data["size"][:, 0]
    reduction = bipartite(metric, data["r"], size, protected=int(data["class_token"])).check()
    out, sizes = reduction.apply(x), reduction.sizes(size)
    assert reduction.m == len(data["out"]) == n - data["r"]
    assert reduction.src.tolist() == list(range(n)), "no token is lost"
    ours, theirs = reduction.dst, data["assign"].long()
    if data.get("stable_f64", True):
        row = torch.full((reduction.m,), -1)  # of the recording, for each of our slots: theirs come in another order
        row[ours] = theirs
        assert row[ours].tolist() == theirs.tolist()
        torch.testing.assert_close(out, data["out"][row], **CLOSE)
        torch.testing.assert_close(sizes, data["out_size"][row, 0], **CLOSE)
    # Ties change which copy merges into which, but neither the mass nor how alike the merged pairs are.
    torch.testing.assert_close(sizes @ out, data["out_size"][:, 0] @ data["out"], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(alike(metric, ours), alike(metric, theirs), rtol=1e-4, atol=1e-3)


def alike(metric: torch.Tensor, assign: torch.Tensor) -> torch.Tensor:
    """Sum of the cosines of merged pairs: every token at an even place that shares a slot with one at an odd place."""
    direction = torch.nn.functional.normalize(metric, dim=1)
    odd = torch.full((int(assign.max()) + 1,), -1)
    odd[assign[1::2]] = torch.arange(1, len(assign), 2)
    even = torch.arange(0, len(assign), 2)
    goal = odd[assign[even]]
    return (direction[even] * direction[goal]).sum(1)[goal >= 0].sum()
