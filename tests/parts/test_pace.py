"""Where methods stop, and how much they leave there."""

import pytest
import torch

from foveate.parts.pace import before, bisect, check_spots, geometric
from foveate.tokens import View


def test_spots_are_layers_or_shares_of_the_depth():
    assert before((2, 0.5, 0.9), 32) == [2, 16, 29]
    assert before((0.25, 0.5, 0.75), 4) == [1, 2, 3]
    assert before((0, 0.1), 32) == [1, 3], "nothing was read before layer 0"
    assert before((0,), 32, 0) == [0]
    assert before((40, 0.99, 31), 32) == [31], "each once, none beyond the last"


@pytest.mark.parametrize("bad", [-1, 1.0, 1.5, True, "2", ()])
def test_what_is_no_spot(bad):
    with pytest.raises(ValueError, match=r"layer"):
        check_spots("layer", (bad,) if bad != () else bad)
    check_spots("layer", (0, 3, 0.0, 0.99))


@pytest.mark.parametrize(
    ("n", "k", "left", "leaves"), [(576, 72, 2, 288), (288, 72, 1, 144), (144, 72, 0, 72), (9, 9, 3, 9)]
)
def test_the_same_share_leaves_at_every_stop(n, k, left, leaves):
    assert geometric(View(torch.zeros(n, 1), k, left=left)) == leaves


def test_bisection_finds_where_a_rise_crosses():
    assert bisect(lambda x: x**3, 8.0, 0.0, 9.0) == pytest.approx(2.0)
    assert bisect(lambda x: x, 5.0, 0.0, 1.0) == 1.0
