import pytest
import torch

from foveate.methods.tokencarve import TokenCarve, information, points
from foveate.tokens import Extra, View

X = torch.tensor([[3.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
ROW = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def view(k: int, x: torch.Tensor = X, row: torch.Tensor = ROW) -> View:
    return View(x, k, extras={"last_row": Extra(row, 1)}, layer=2, depth=8)


def test_information_is_the_length_in_singular_directions():
    """The directions of X are its axes, so that the sum over them is the L1 norm of a row."""
    torch.testing.assert_close(information(X), torch.tensor([3.0, 2.0, 3.0, 1.0]))
    torch.testing.assert_close(information(X.mT @ torch.eye(4)), torch.tensor([18**0.5, 5**0.5]))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_information_is_that_of_the_decomposition(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    torch.testing.assert_close(information(x), (u.abs() @ s).float())


def test_copies_have_the_same_information_among_huge_features():
    """As language models have them: two features a thousand times as large as the others, in a few tokens."""
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    x[[3, 17], :2] += 2000
    x = torch.cat([x, x])
    score = information(x)
    assert torch.equal(score[:40], score[40:])
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    torch.testing.assert_close(score, (u.abs() @ s).float())


def test_points_from_n_to_one_and_their_mean():
    assert points(torch.tensor([3.0, 2.0, 3.0, 1.0])).tolist() == [4, 2, 3, 1]
    assert points(ROW[0]).tolist() == [1, 4, 2, 3]
    assert TokenCarve().score(view(2)).tolist() == [2.5, 3, 2.5, 2]
    assert TokenCarve(mode="svd").score(view(2)).tolist() == [4, 2, 3, 1]
    assert TokenCarve(mode="attention").score(view(2)).tolist() == [1, 4, 2, 3]
    assert TokenCarve(weight=1).score(view(2)).tolist() == [4, 2, 3, 1]


def test_prune_only_and_prune_then_merge_leave_the_same_number():
    """By information: 0, 2, 1 stay at first; 0 is the upper half, and 2 is its copy."""
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0], [2.9, 0.0], [0.0, 1.0]])
    pruned = TokenCarve(mode="svd", merge=False)(view(2, x)).check()
    assert pruned.is_drop and pruned.anchor.tolist() == [0, 2]
    merged = TokenCarve(mode="svd")(view(2, x)).check()
    assert merged.anchor.tolist() == [0, 1] and merged.src.tolist() == [0, 1, 2]
    torch.testing.assert_close(merged.apply(x), torch.tensor([[2.95, 0.0], [0.0, 2.0]]))


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_counts_are_exact(n):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(1))
    for k in range(1, n + 1):
        answer = TokenCarve()(view(k, x, torch.ones(2, n))).check()
        assert answer.m == k
        assert len(answer.src) == min(k * 3 // 2, n), "half as many again, as far as there are"


def test_one_stop_between_the_second_and_third_layer():
    assert list(TokenCarve().stops(32)) == [2]
