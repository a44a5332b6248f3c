import math

import torch

from foveate.methods.tome import ToMe
from foveate.parts.merge import bipartite
from foveate.tokens import View


def test_one_round_by_hand():
    """Even places 0, 2, 4 look for their match among 1, 3: (0, 1) at 5 degrees, (2, 3) at 20, (4, 3) at 40."""
    angles = [0, 5, 60, 80, 120]
    x = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])
    reduction = ToMe()(View(x, 4))
    assert reduction.anchor.tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(reduction.apply(x), torch.stack([(x[0] + x[1]) / 2, x[2], x[3], x[4]]))
    reduction = ToMe()(View(x, 3))
    assert reduction.anchor.tolist() == [1, 3, 4]
    torch.testing.assert_close(reduction.apply(x), torch.stack([(x[0] + x[1]) / 2, (x[2] + x[3]) / 2, x[4]]))


def test_rounds_average_by_size():
    """Down to one token, whatever the rounds were: the mean of all, weighted by size."""
    x, size = torch.randn(13, 4), torch.arange(1.0, 14.0)
    reduction = ToMe()(View(x, 1, size=size))
    torch.testing.assert_close(reduction.apply(x)[0], size @ x / size.sum())
    assert reduction.sizes(size).tolist() == [size.sum()]


def test_every_token_ends_in_one_slot():
    x = torch.randn(30, 4)
    for k in range(1, 31):
        reduction = ToMe()(View(x, k))
        assert reduction.m == k and sorted(reduction.src.tolist()) == list(range(30))
        torch.testing.assert_close(reduction.sizes(torch.ones(30)).sum(), torch.tensor(30.0))


def test_protected_tokens_stay_alone():
    x = torch.ones(9, 3)
    for protected in range(5):
        reduction = bipartite(x, 9, protected=protected).check()
        fed = [reduction.src[reduction.dst == slot].tolist() for slot in range(reduction.m)]
        assert fed[:protected] == [[i] for i in range(protected)]
        assert reduction.m < 9
