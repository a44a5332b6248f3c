"""GemFilter's selection against the authors' function; ``test_recorded.py`` says what the recordings are."""

import pytest
import torch
from recorded import CLOSE, FOLDER, load, recordings

from foveate.entries import Entries
from foveate.methods.gemfilter import GemFilter
from foveate.parts.select import top
from foveate.tokens import Extra


def test_there_are_recordings():
    assert list(FOLDER.glob("gemfilter_*.npz"))


@recordings("gemfilter")
def test_gemfilter(path):
    """The authors do not force the last token: it is compared on the scores, and with it left out of both."""
    data = load(path)
    keys, k = data["key"], data["k"]
    n = keys.shape[1]
    number = torch.arange(n)
    extras = {"query": Extra(data["query"][None])}
    one = Entries(keys, keys, torch.zeros_like(number), number, torch.ones(n, dtype=torch.bool), k, extras=extras)
    method = GemFilter(kernel=data["pool_kernel"])
    torch.testing.assert_close(method.score(one)[data["idx_by_score"].long()], data["value"], **CLOSE)
    assert top(method.score(one), k).tolist() == data["kept"].long().tolist()
    kept = method(one)
    assert len(kept) == k and kept[-1] == n - 1
    if n - 1 not in data["kept"]:
        expected = data["idx_by_score"].long().tolist()[: k - 1]
        assert sorted(expected) == kept[:-1].tolist()


@pytest.mark.parametrize("k", [1, 3])
def test_ties_go_to_the_first(k):
    keys = torch.ones(1, 6, 2)
    one = Entries(
        keys,
        keys,
        torch.zeros(6).long(),
        torch.arange(6),
        torch.ones(6).bool(),
        k,
        extras={"query": Extra(torch.ones(1, 1, 2))},
    )
    assert GemFilter(kernel=1)(one).tolist() == [*range(k - 1), 5]
