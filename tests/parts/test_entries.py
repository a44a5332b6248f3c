import pytest
import torch

from foveate.errors import MethodError
from foveate.parts.entries import all_heads, best

SCORE = torch.tensor([[5.0, 1, 4, 4, 2, 0], [0.0, 0, 0, 0, 0, 9]])


def test_heads_choose_by_themselves_and_ties_go_to_the_first():
    assert best(SCORE, 2).tolist() == [[0, 2], [0, 5]]
    assert best(SCORE, 3).tolist() == [[0, 2, 3], [0, 1, 5]]
    assert best(SCORE, 6).tolist() == [list(range(6))] * 2


def test_both_ends_stay_and_the_end_goes_first():
    assert best(SCORE, 3, recent=2).tolist() == [[0, 4, 5], [0, 4, 5]]
    assert best(SCORE, 3, first=2).tolist() == [[0, 1, 2], [0, 1, 5]]
    assert best(SCORE, 4, first=1, recent=2).tolist() == [[0, 2, 4, 5], [0, 1, 4, 5]]
    assert best(SCORE, 3, first=4, recent=2).tolist() == [[0, 4, 5]] * 2
    assert best(SCORE, 2, first=4, recent=9).tolist() == [[4, 5]] * 2


def test_scores_may_be_minus_infinity():
    score = torch.full((1, 5), -torch.inf)
    score[0, 2] = 0
    assert best(score, 3, first=1, recent=1).tolist() == [[0, 2, 4]]
    assert best(score, 4, first=1, recent=1).tolist() == [[0, 1, 2, 4]]


def test_scores_stay_as_they_are_and_nan_is_an_error():
    score = SCORE.clone()
    best(score, 3, first=1, recent=2)
    assert torch.equal(score, SCORE)
    score[1, 3] = torch.nan
    with pytest.raises(MethodError, match="NaN"):
        best(score, 3)


def test_all_heads():
    kept = all_heads(torch.tensor([1, 4]), 3)
    assert kept.tolist() == [[1, 4]] * 3 and kept.is_contiguous()
