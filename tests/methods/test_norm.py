import torch

from foveate.methods.norm import Norm
from foveate.tokens import View

X = torch.tensor([[3.0, 4.0], [0.0, 1.0], [-6.0, 0.0], [0.0, 5.0]])  # norms 5, 1, 6, 5


def test_largest_norms_stay_and_ties_go_to_the_first():
    assert Norm()(View(X, 2)).anchor.tolist() == [0, 2]
    assert Norm()(View(X, 3)).anchor.tolist() == [0, 2, 3]


def test_smallest():
    assert Norm(largest=False)(View(X, 2)).anchor.tolist() == [0, 1]
