import pytest
import torch

from foveate.methods.llavolta import LLaVolta
from foveate.plan import Plan
from foveate.tokens import View

X = torch.arange(10, dtype=torch.float32)[:, None].expand(-1, 2)


@pytest.mark.parametrize(
    ("k", "means", "anchor"),
    [
        (10, list(range(10)), list(range(10))),
        (9, [0.5, 2.5, 4.5, 6.5, 8.5], [0, 2, 4, 6, 8]),  # pairs are the least that meets 9
        (5, [0.5, 2.5, 4.5, 6.5, 8.5], [0, 2, 4, 6, 8]),
        (4, [1, 4, 7, 9], [1, 4, 7, 9]),
        (3, [1.5, 5.5, 8.5], [1, 5, 8]),
        (1, [4.5], [4]),
    ],
)
def test_neighbours_are_averaged_within_the_budget(k, means, anchor):
    answer = LLaVolta()(View(X, k)).check()
    assert answer.apply(X)[:, 0].tolist() == means
    assert answer.anchor.tolist() == anchor


def test_what_is_left_over_may_be_dropped():
    answer = LLaVolta(remainder=False)(View(X, 4)).check()
    assert answer.apply(X)[:, 0].tolist() == [1, 4, 7]
    assert LLaVolta(remainder=False)(View(X[:1], 1)).m == 1


def test_a_stride_needs_no_budget():
    assert Plan.of("llavolta:stride=5").steps[0].keep is None
    assert LLaVolta(stride=5)(View(X, 10)).anchor.tolist() == [2, 7]
    assert LLaVolta(stride=2)(View(X, 2)).anchor.tolist() == [2, 7], "a budget makes it larger"
    assert LLaVolta(stride=99)(View(X, 10)).m == 1


def test_tokens_that_stand_for_several_weigh_more():
    size = torch.ones(10)
    size[1] = 3
    assert LLaVolta()(View(X, 5, size=size)).apply(X)[0, 0] == 0.75


def test_one_stop():
    assert list(LLaVolta().stops(32)) == [2]
    assert list(LLaVolta(layer=16).stops(32)) == [16]
