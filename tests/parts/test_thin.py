import pytest
import torch

from foveate.parts import thin as module
from foveate.parts.thin import thin

ANGLES = torch.deg2rad(torch.tensor([0.0, 10, 90, 45, 60]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def test_rounds_by_hand():
    """One is dropped per round, two stay.

    0 2 4 | 1 3: nearest at 10, 45 and 15 degrees: 0 goes; then 4, 2 (nearest first), 1, 3
    4 1 | 2 3:   15 and 35: 4 goes; then 1, 2, 3
    1 3 | 2:     80 and 45: 3 goes; then 1, 2
    """
    assert thin(X, 2, step=1).tolist() == [1, 2]
    assert thin(X, 5).tolist() == [0, 1, 2, 3, 4] and thin(X, 0).tolist() == []


@pytest.mark.parametrize("near", [1, 3, 99])
def test_neighbours_looked_at_first_do_not_matter(near, monkeypatch):
    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    expected = thin(x, 11, 3).tolist()
    monkeypatch.setattr(module, "NEAR", near)
    assert thin(x, 11, 3).tolist() == expected and len(set(expected)) == 11
