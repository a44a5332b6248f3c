import torch

from foveate.methods.fastv import FastV
from foveate.tokens import Extra, View

ROW = torch.tensor([[0.10, 0.50, 0.20, 0.20], [0.40, 0.10, 0.30, 0.20]])  # mean 0.25, 0.30, 0.25, 0.20


def view(k: int) -> View:
    return View(torch.zeros(4, 2), k, extras={"last_row": Extra(ROW, 1)}, layer=2, depth=8)


def test_mean_over_heads_and_ties_go_to_the_first():
    torch.testing.assert_close(FastV().score(view(1)), torch.tensor([0.25, 0.30, 0.25, 0.20]))
    assert FastV()(view(1)).anchor.tolist() == [1]
    assert FastV()(view(2)).anchor.tolist() == [0, 1]


def test_one_stop_before_its_layer():
    assert list(FastV().stops(32)) == [2]
    assert list(FastV(layer=0.5).stops(32)) == [16]
