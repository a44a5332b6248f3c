import pytest
import torch

from foveate.entries import Entries
from foveate.methods.snapkv import SnapKV
from foveate.tokens import Extra, Kind

# Two query heads on one key head, a window of two. Sums over the window: 1.2 0.2 0.4 0.2, and 0.2 0.2 0.2 0.6.
ROWS = torch.tensor(
    [
        [[0.6, 0.1, 0.2, 0.1, 0.0, 0.0], [0.6, 0.1, 0.2, 0.1, 0.0, 0.0]],
        [[0.1, 0.1, 0.1, 0.3, 0.4, 0.0], [0.1, 0.1, 0.1, 0.3, 0.1, 0.3]],
    ]
)[None]


def entries(k: int, rows: torch.Tensor = ROWS) -> Entries:
    heads, _, _, n = rows.shape
    keys, kind = torch.zeros(heads, n, 2), torch.full((n,), int(Kind.TEXT))
    left = torch.ones(n, dtype=torch.bool)
    return Entries(keys, keys, kind, torch.arange(n), left, k, extras={"window_rows": Extra(rows, 0)})


def test_sum_over_the_window_and_mean_over_the_heads_of_a_group():
    method = SnapKV(observe=2, kernel=1)
    score = method.score(entries(4))
    torch.testing.assert_close(score, torch.tensor([[0.7, 0.2, 0.3, 0.4, 0.0, 0.0]]))
    assert method(entries(3), score).kept.tolist() == [[0, 4, 5]]
    assert method(entries(4), score).kept.tolist() == [[0, 3, 4, 5]]


def test_scores_are_pooled_over_neighbours_with_zeros_beyond_the_ends():
    mean = SnapKV(observe=2, kernel=3).score(entries(4))
    torch.testing.assert_close(mean, torch.tensor([[0.9 / 3, 1.2 / 3, 0.9 / 3, 0.7 / 3, 0.0, 0.0]]))
    assert SnapKV(observe=2, kernel=3)(entries(3), mean).kept.tolist() == [[1, 4, 5]]
    highest = SnapKV(observe=2, kernel=3, pooling="max").score(entries(4))
    torch.testing.assert_close(highest, torch.tensor([[0.7, 0.7, 0.4, 0.4, 0.0, 0.0]]))


def test_heads_keep_their_own():
    rows = ROWS.transpose(0, 1)  # two key heads, one query head each
    method = SnapKV(observe=2, kernel=1)
    assert method(entries(3, rows), method.score(entries(3, rows))).kept.tolist() == [[0, 4, 5], [3, 4, 5]]


@pytest.mark.parametrize("k", [1, 2, 6])
def test_a_budget_or_a_prompt_within_the_window_keeps_the_end(k):
    method = SnapKV(observe=8)
    assert method(entries(k), method.score(entries(k))).kept.tolist() == [list(range(6 - k, 6))]


def test_options():
    assert SnapKV().window == 32 and SnapKV(observe=7).window == 7
    for wrong in ({"observe": 0}, {"kernel": 4}, {"pooling": "median"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SnapKV(**wrong)
