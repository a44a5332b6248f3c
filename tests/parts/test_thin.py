import pytest
import torch

from foveate.parts import thin as module
from foveate.parts.similarity import cosines
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
@pytest.mark.parametrize("few", [0, 40, 640])
def test_neighbours_looked_at_first_do_not_matter(near, few, monkeypatch):
    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    expected = thin(x, 11, 3).tolist()
    monkeypatch.setattr(module, "NEAR", near)
    monkeypatch.setattr(module, "FEW", few)
    assert thin(x, 11, 3).tolist() == expected and len(set(expected)) == 11


@pytest.mark.parametrize("few", [0, 640])
@pytest.mark.parametrize("kind", ["random", "ties", "copies"])
def test_rounds_are_the_same_on_the_processor_and_on_a_device(kind, few, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    grid = torch.randint(-1, 2, (90, 3), generator=draw).float()
    x = {"random": torch.randn(90, 8, generator=draw), "ties": grid, "copies": grid[torch.arange(90) // 4]}[kind]
    monkeypatch.setattr(module, "FEW", few)
    likeness = cosines(x).fill_diagonal_(-torch.inf)
    for k in (1, 11, 60, 89):
        for step in (1, 8):
            here, there = (f(likeness.clone(), k, step) for f in (module._thin_on_cpu, module._thin_on_device))
            assert torch.equal(here, there) and torch.equal(thin(x, k, step), here)
