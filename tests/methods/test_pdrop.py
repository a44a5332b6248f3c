import torch

from foveate.methods.pdrop import PyramidDrop
from foveate.tokens import Extra, View


def view(n: int, k: int, left: int) -> View:
    row = torch.arange(n, dtype=torch.float32).expand(2, -1)  # the later the more attention
    return View(torch.zeros(n, 2), k, extras={"ahead_row": Extra(row, 8)}, left=left)


def test_half_at_each_of_three_stages_is_an_eighth():
    method, n = PyramidDrop(), 576
    assert list(method.stops(32)) == [8, 16, 24]
    for left, expected in ((2, 288), (1, 144), (0, 72)):
        n = method(view(n, 72, left)).m
        assert n == expected


def test_what_will_be_attended_to_stays():
    assert PyramidDrop()(view(8, 1, 2)).anchor.tolist() == [4, 5, 6, 7]
