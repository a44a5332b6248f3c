import pytest
import torch

from foveate.entries import Entries
from foveate.methods.h2o import H2O
from foveate.tokens import Extra, Kind

RECEIVED = (
    torch.tensor(  # two key heads, two query heads each; sums 3.0 0.9 2.0 1.1 0.9 0.1 and 0.1 1.0 0.2 2.0 0.3 0.4
        [
            [[2.0, 0.5, 0.5, 1.0, 0.5, 0.1], [1.0, 0.4, 1.5, 0.1, 0.4, 0.0]],
            [[0.1, 0.5, 0.1, 1.0, 0.1, 0.2], [0.0, 0.5, 0.1, 1.0, 0.2, 0.2]],
        ]
    )
)


def entries(k: int) -> Entries:
    keys, kind = torch.zeros(2, 6, 2), torch.full((6,), int(Kind.TEXT))
    left = torch.ones(6, dtype=torch.bool)
    return Entries(keys, keys, kind, torch.arange(6), left, k, extras={"received": Extra(RECEIVED, 0)})


def kept(method: H2O, k: int) -> list:
    return method(entries(k), method.score(entries(k))).kept.tolist()


def test_half_to_what_received_most_half_to_the_latest():
    torch.testing.assert_close(H2O().score(entries(4))[0], torch.tensor([3.0, 0.9, 2.0, 1.1, 0.9, 0.1]))
    assert kept(H2O(), 4) == [[0, 2, 4, 5], [1, 3, 4, 5]]
    assert kept(H2O(), 2) == [[0, 5], [3, 5]]
    assert kept(H2O(recent=0), 4) == [[0, 1, 2, 3], [1, 3, 4, 5]]
    assert kept(H2O(recent=1.0), 3) == [[3, 4, 5]] * 2
    assert kept(H2O(), 1) == [[5]] * 2  # a half is rounded up


def test_while_decoding_the_lightest_of_the_old_goes():
    """A row that may hold four holds five; the latest two, of which one is new, are safe. The other has two empty slots."""
    alive = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    score = torch.tensor([[[3.0, 1, 2, 0, 0], [1.0, 3, 1, 0, 0]], [[0.0, 0, 5, 4, 0], [0.0, 0, 1, 4, 0]]])
    assert H2O().oldest(score, alive).tolist() == [[1, 0], [3, 2]]
    assert H2O(recent=0.75).oldest(score, alive)[0].tolist() == [1, 0]
    assert H2O(recent=0).oldest(score, alive)[0].tolist() == [3, 3]


def test_options():
    assert H2O().evicts and not H2O(decoding=False).evicts
    with pytest.raises(ValueError, match="recent"):
        H2O(recent=1.5)
