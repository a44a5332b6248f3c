import pytest
import torch

from foveate.errors import MethodError
from foveate.parts.pivots import strongest, unlike


def test_strongest_by_l1_norm_strongest_first():
    """Norms 5, 6, 1, 6: of equals the first."""
    x = torch.tensor([[5.0, 0], [3, -3], [0, 1], [-6, 0]])
    assert strongest(x, 3).tolist() == [1, 3, 0]
    assert strongest(x, 9).tolist() == [1, 3, 0, 2] and strongest(x, 0).tolist() == []
    with pytest.raises(MethodError, match="NaN"):
        strongest(x * torch.nan, 1)


def test_shares_are_rounded_up_and_the_last_gets_what_is_left():
    likeness = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1, 0.0]])
    assert unlike(likeness, torch.tensor([4]), 4).tolist() == [4, 0, 1, 3]
    assert unlike(likeness, torch.tensor([4]), 5).tolist() == [4, 0, 1, 3, 2]
    assert unlike(likeness, torch.tensor([4]), 1).tolist() == [4]
