import pytest
import torch

from foveate.methods.stride import Stride
from foveate.tokens import View


@pytest.mark.parametrize(
    ("n", "k", "kept"),
    [
        (9, 3, [1, 4, 7]),  # the middle of 0-2, 3-5, 6-8
        (4, 1, [2]),
        (5, 2, [1, 3]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_middle_of_each_stretch(n, k, kept):
    reduction = Stride()(View(torch.zeros(n, 2), k))
    assert reduction.is_drop and reduction.anchor.tolist() == kept
