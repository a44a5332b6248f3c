from itertools import pairwise

import pytest
import torch

from foveate.entries import Entries
from foveate.methods.pyramidkv import PyramidKV
from foveate.methods.snapkv import SnapKV
from foveate.tokens import Extra, Kind


def test_a_straight_line_from_two_averages_to_a_beta_th():
    """Besides the window of 8, 100 on average: 195 at first and 5 at last, in steps of 190 / 4."""
    shares = PyramidKV(observe=8).allot(108, 1000, [0.0] * 5)
    assert [each - 8 for each in shares] == [195, 148, 100, 52, 5]
    assert sum(shares) == 5 * 108


def test_the_first_layer_holds_no_more_than_there_is():
    """195 do not fit into 158 - 8; so it falls from 150 to 50."""
    shares = PyramidKV(observe=8).allot(108, 158, [0.0] * 3)
    assert [each - 8 for each in shares] == [150, 100, 50]


@pytest.mark.parametrize("layers", [1, 2, 7, 32])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 50), (32, 50), (33, 50), (40, 50), (50, 50), (333, 1000)])
def test_layers_add_up_to_the_budget_and_fall(layers, k, n):
    shares = PyramidKV().allot(k, n, [0.0] * layers)
    assert sum(shares) == layers * k and min(shares) >= 1 and max(shares) <= n
    assert all(later <= sooner + 1 for sooner, later in pairwise(shares))


def test_it_scores_and_chooses_as_snapkv():
    rows = torch.rand(2, 3, 4, 20, generator=torch.Generator().manual_seed(0))
    keys, kind = torch.zeros(2, 20, 2), torch.full((20,), int(Kind.TEXT))
    left = torch.ones(20, dtype=torch.bool)
    entries = Entries(keys, keys, kind, torch.arange(20), left, 9, extras={"window_rows": Extra(rows, 0)})
    one, other = PyramidKV(observe=4, kernel=3), SnapKV(observe=4, kernel=3)
    score = one.score(entries)
    assert torch.equal(score, other.score(entries)) and one.window == 4
    assert torch.equal(one(entries, score).kept, other(entries, score).kept)


def test_options():
    for wrong in ({"beta": 0}, {"kernel": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PyramidKV(**wrong)
