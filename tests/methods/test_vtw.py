import pytest
import torch

from foveate.methods.vtw import VTW
from foveate.plan import Plan
from foveate.tokens import View


def exits(method: VTW, k: int, depth: int = 8, n: int = 10) -> int:
    """The first layer without the picture."""
    for layer in method.stops(depth):
        answer = method(View(torch.zeros(n, 2), k, layer=layer, depth=depth, entered=n))
        if answer is not None:
            assert answer.m == 0
            return layer
    return depth


@pytest.mark.parametrize(("k", "layer"), [(1, 1), (5, 4), (8, 6), (10, 8)])
def test_the_budget_is_the_share_of_layers_with_the_picture(k, layer):
    assert exits(VTW(), k) == layer


def test_a_layer_needs_no_budget():
    assert exits(VTW(layer=3), 10) == 3
    assert exits(VTW(layer=0.5), 10) == 4
    assert Plan.of("vtw:layer=16").steps[0].keep is None
    with pytest.raises(Exception, match="no budget"):
        Plan.of("vtw")
