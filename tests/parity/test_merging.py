"""Clustering and merging, against the authors' functions.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, load, recordings

from foveate.methods.dpcknn import DPCKNN
from foveate.parts.cluster import density_peaks
from foveate.tokens import View


@pytest.mark.parametrize("method", ["prunevid_a", "sparsevlm_d"])
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("prunevid_a")
def test_clusters(path):
    """The authors number clusters by the score of their centres. The order apart, they are the same sets."""
    data = load(path)
    theirs, clusters = data["idx"].long(), data["cluster_num"]
    home, centre = density_peaks(data["x"], clusters, data["k"])
    assert len(theirs.unique()) == len(centre) == clusters
    assert torch.equal(home[:, None] == home, theirs[:, None] == theirs)
    reduction = DPCKNN(neighbours=data["k"])(View(data["x"], clusters)).check()
    assert torch.equal(reduction.dst[:, None] == reduction.dst, theirs[:, None] == theirs)


@recordings("sparsevlm_d")
def test_merged_rows(path):
    """The density looks at as many neighbours as there are clusters. Rows are compared as a set."""
    data = load(path)
    out = DPCKNN(neighbours=data["cluster_num"])(View(data["x"], data["cluster_num"])).apply(data["x"])
    nearest = torch.cdist(out, data["merged"]).argmin(1)
    assert sorted(nearest.tolist()) == list(range(data["cluster_num"]))
    torch.testing.assert_close(out, data["merged"][nearest], **CLOSE)
