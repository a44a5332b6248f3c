import torch

from foveate.methods.fastervlm import FasterVLM
from foveate.tokens import Extra, View

ATTENTION = torch.tensor([[0.10, 0.50, 0.20, 0.20], [0.40, 0.10, 0.30, 0.20]])  # mean 0.25, 0.30, 0.25, 0.20


def view(k: int) -> View:
    return View(torch.zeros(4, 2), k, extras={"attention": Extra(ATTENTION, 5, "CLS row over the tower's tokens")})


def test_mean_over_heads():
    torch.testing.assert_close(FasterVLM().score(view(1)), torch.tensor([0.25, 0.30, 0.25, 0.20]))


def test_highest_stay_and_ties_go_to_the_first():
    assert FasterVLM()(view(1)).anchor.tolist() == [1]
    assert FasterVLM()(view(2)).anchor.tolist() == [0, 1]
