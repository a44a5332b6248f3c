"""Methods that select by diversity and by the question, against the authors' functions and their ports.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, index, load, recordings

from foveate.methods import dart
from foveate.methods.apet import ApET
from foveate.methods.cdpruner import CDPruner
from foveate.methods.idpruner import IDPruner
from foveate.methods.scope import SCOPE
from foveate.methods.simignore import Simignore
from foveate.parts.cluster import density_peaks
from foveate.parts.greedy import farthest, volume
from foveate.parts.similarity import cosines, unit
from foveate.tokens import Extra, View

HALF = {"rtol": 2e-3, "atol": 2e-3}  # where the authors round to half precision


def groups(group: torch.Tensor, kept: torch.Tensor) -> list[int]:
    """Ids of the distinct rows that were kept, with multiplicity."""
    return group.long()[kept.long()].sort().values.tolist()


METHODS = [
    "sparsevlm_d",
    "cdpruner",
    "scope",
    "dart_angelslim",
    "dart_lightcompress",
    "idpruner",
    "apet",
    "simignore",
    "prunevid_a",
]


@pytest.mark.parametrize("method", METHODS)
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("cdpruner")
def test_cdpruner(path):
    """Relevance is that of the recorded CLIP embeddings; the authors stretch it over all pictures of a batch at once."""
    data = load(path)
    patches, words = unit(data["image_embeds"].flatten(0, 1))[0], unit(data["text_embeds"])[0]
    relevance = -(patches @ words.mT).mean(1)
    quality = CDPruner.quality(relevance).view(data["mask"].shape)
    k = data["num_keep"]
    for x, mine, mask, group in zip(data["x"], quality, data["mask"], data["group"], strict=True):
        picked, kept = volume(cosines(x), mine, k), mask.nonzero()[:, 0]
        distinct = len(group.unique())
        assert len(picked.unique()) == k
        assert len(group[picked[:distinct]].unique()) == min(k, distinct), "copies only when nothing else is left"
        if data.get("stable_f64", True):
            assert groups(group, picked) == groups(group, kept)
            if "dups" not in path.stem:
                assert picked.sort().values.tolist() == kept.tolist()
    if len(data["x"]) == 1:
        extras = {"relevance": Extra(relevance)}
        answer = CDPruner()(View(data["x"][0], k, extras=extras))
        assert answer.anchor.tolist() == picked.sort().values.tolist()


@recordings("scope")
def test_scope(path):
    data = load(path)
    recorded = data["selected_in_order"]
    view = View(data["x"], data["num_keep"], extras={"attention": Extra(data["saliency"][None])})
    picked = SCOPE(alpha=data["alpha"]).order(view)
    assert len(picked.unique()) == len(recorded)
    if data.get("stable_f64", True):
        group = data["group"].long()
        assert index(group[picked]) == index(group[recorded.long()])
        if "dups" not in path.stem:
            assert index(picked) == index(recorded)


@recordings("idpruner")
def test_idpruner(path):
    data = load(path)
    k = max(1, round(len(data["x"]) * (1 - data["drop_ratio"])))
    view = View(data["x"], k, extras={"attention": Extra(data["raw_score"][None])})
    kept = IDPruner(balance=data["mmr_lambda"], together=data["parallel_k"])(view).anchor
    assert len(kept) == len(data["kept"])
    if data.get("stable_f64", True):
        assert groups(data["group"], kept) == groups(data["group"], data["kept"])
        if "dups" not in path.stem:
            assert index(kept) == index(data["kept"])


def strongest(norm: torch.Tensor, k: int) -> torch.Tensor:
    return norm.sort(descending=True, stable=True).indices[:k]


@recordings("dart_angelslim")
def test_dart_in_angelslim(path):
    """Pivots from the recorded keys; which tokens each keeps is ours. Text pivots there come from all text."""
    data = load(path)
    norm = data["key"].abs().sum((0, 2))
    torch.testing.assert_close(norm, data["key_l1"], **CLOSE)
    start, n = data["sys_len"], data["num_image"]
    image = torch.arange(start, start + n)
    text = torch.cat([torch.arange(start), torch.arange(start + n, len(norm))])
    own = strongest(norm[image], data["pivot_image"])
    told = text[strongest(norm[text], data["pivot_text"])]
    rows, _ = unit(data["feature_map"])
    likeness = torch.cat([rows[image][own], rows[told]]) @ rows[image].mT
    k = max(1, round(n * (1 - data["drop_ratio"])))
    kept = dart.unlike(likeness, own, k)
    assert len(kept.unique()) == k
    if data.get("stable_f64", True):
        assert groups(data["group"], kept) == groups(data["group"], data["kept_image"])
        if "dups" not in path.stem:
            assert index(kept.sort().values) == index(data["kept_image"])


@recordings("dart_lightcompress")
def test_dart_in_lightcompress(path):
    """This port takes the pivots in the order in which Python iterates over a set, and rounds shares down."""
    data = load(path)
    norm = data["key"].abs().sum((0, 2))
    start, n = data["sys_len"], data["num_image"]
    own = strongest(norm[start : start + n], data["pivot_image"])
    told = start + n + strongest(norm[start + n :], data["pivot_text"])
    turns = torch.tensor(list({*(start + own).tolist(), *told.tolist()}))
    rows, _ = unit(data["hidden"])
    likeness = rows[turns] @ rows[start : start + n].mT
    kept = dart.unlike(likeness, own, len(own) + len(turns) * data["per_pivot"])
    assert len(kept.unique()) == len(data["kept_abs"])
    if data.get("stable_f64", True) and "dups" not in path.stem:
        assert index(start + kept.sort().values) == index(data["kept_abs"])


@recordings("apet")
def test_apet(path):
    data = load(path)
    x, k = data["x"], data["num_keep"]
    basis = farthest(x, torch.tensor([data["fps_start"]]), data["basis_num"])
    group = data["group"].long()
    assert index(group[basis]) == index(group[data["fps_idx"].long()])
    error = ApET.errors(x, basis)
    torch.testing.assert_close(error, data["error"], **CLOSE)
    view = View(x, k)
    answer = ApET(basis=data["basis_num"], overwrite=True).around(view, basis).check()
    if data.get("stable_f64", True):
        assert groups(group, answer.anchor) == groups(group, data["kept"])
        if "dups" not in path.stem:
            assert index(answer.anchor) == index(data["kept"])
            torch.testing.assert_close(answer.apply(x), data["out_kept"].float(), **HALF)
    plain = ApET(basis=data["basis_num"]).around(view, basis)
    assert len(set(index(basis)) - set(index(plain.anchor))) == 0 and plain.m == k


@recordings("simignore")
def test_simignore(path):
    data = load(path)
    view = View(data["image"], data["k2"], extras={"question": Extra(data["text"])})
    order = Simignore(step=data["step"], start=data["i_index"]).order(view)
    assert len(order) == len(data["selected_in_order"])
    if data.get("stable_f64", True):
        assert index(order) == index(data["selected_in_order"])


@recordings("prunevid_a")
def test_clusters_of_prunevid(path):
    """The clusters that the merging methods share, up to the order in which clusters are counted."""
    data = load(path)
    home, _ = density_peaks(data["x"].squeeze(0), data["cluster_num"], data["k"])
    pairs = set(zip(index(home), index(data["idx"].flatten()), strict=True))
    assert len(pairs) == data["cluster_num"] == len(home.unique())


@recordings("sparsevlm_d")
def test_clusters_of_sparsevlm(path):
    data = load(path)
    x, clusters = data["x"].squeeze(0), data["cluster_num"]
    home, _ = density_peaks(x, clusters, clusters)
    mean = torch.zeros(clusters, x.shape[1]).index_add(0, home, x) / torch.bincount(home, minlength=clusters)[:, None]
    match = torch.cdist(mean, data["merged"].squeeze(0)).argmin(1)
    assert sorted(match.tolist()) == list(range(clusters))
    torch.testing.assert_close(mean, data["merged"].squeeze(0)[match], **CLOSE)
