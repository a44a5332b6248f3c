import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.floc import FLoC
from foveate.parts.similarity import cosines
from foveate.tokens import View

ANGLES = torch.deg2rad(torch.tensor([0.0, 20, 40, 180]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def test_served_best():
    """1 is nearest to 0 and 2, though it is against 3; then 3, which nobody serves."""
    assert FLoC()(View(X, 1)).anchor.tolist() == [1]
    assert FLoC()(View(X, 2)).anchor.tolist() == [1, 3]


def test_dissimilarity_counts():
    """Sums of cosines: three tokens spread over 240 degrees are served no better by the middle one than by a fourth."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-0.8, 0.6]])  # sums 1 - 1 - 0.8, -1 + 1 + 0.8, -0.8 + 0.8 + 1
    assert FLoC()(View(x, 1)).anchor.tolist() == [2]


def test_is_greedy():
    """Every pick raises the objective by as much as any other could."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    likeness = cosines(x).double()
    kept = set(FLoC()(View(x, 6)).anchor.tolist())
    chosen: list[int] = []
    while len(chosen) < 6:
        worth = {j: float(likeness[[*chosen, j]].amax(0).sum()) for j in range(30) if j not in chosen}
        chosen.append(max(worth, key=worth.__getitem__))
    assert kept == set(chosen)


def test_stretches_of_frames_are_solved_alone():
    """Four frames of two tokens, two frames per stretch: each stretch gets half, though the second repeats the first."""
    x = torch.eye(4).repeat(2, 1)
    view = View(x, 4, t=torch.arange(8) // 2)
    assert FLoC(frames=2)(view).anchor.tolist() == [0, 1, 4, 5]
    assert FLoC(frames=4)(view).anchor.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [1, 5, 6, 7, 11])
def test_stretches_meet_the_budget(k):
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    assert FLoC(frames=1)(View(x, k, t=torch.tensor([0, 0, 1, 1, 1, 1, 1, 3, 3, 7, 7]))).m == k


def test_frames_are_checked():
    with pytest.raises(PlanError, match="frames"):
        Plan.of("floc:keep=64,frames=0")
