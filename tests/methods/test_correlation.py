import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.correlation import Correlation
from foveate.tokens import Extra, View

# Tile 0 is blank, all its keys are alike; in tile 1 each key is different.
TILE = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
KEYS = torch.cat([torch.tensor([[1.0, 1, 1, 1]]).expand(4, 4), torch.eye(4)])
EARLY = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4]])
LATE = torch.full((2, 8), 0.25)
X = torch.tensor([[1.0], [2], [4], [8], [16], [32], [64], [128]])


def view(k: int, late: torch.Tensor = LATE, keys: torch.Tensor = KEYS) -> View:
    extras = {"attention": Extra(late), "early": Extra(EARLY), "keys": Extra(keys)}
    return View(X, k, tile=TILE, row=torch.zeros_like(TILE), extras=extras)


def test_density_is_what_is_not_redundant():
    """A token of the blank tile has three fellows, above a tenth of four; one of the other has none."""
    likeness = (KEYS[4:] @ KEYS[4:].mT).fill_diagonal_(-torch.inf)
    assert Correlation().density(likeness) == 1
    assert Correlation().density(torch.ones(4, 4).fill_diagonal_(-torch.inf)) == 0
    assert Correlation(many=0.75).density(torch.ones(4, 4).fill_diagonal_(-torch.inf)) == 1, "three are not above three"


def test_a_blank_tile_keeps_least():
    reduction = Correlation()(view(5))
    assert reduction.anchor.tolist() == [1, 4, 5, 6, 7]
    by_early = (0.1 * 1 + 0.4 * 2 + 0.2 * 4 + 0.3 * 8) / 1.0
    torch.testing.assert_close(reduction.apply(X)[:, 0], torch.tensor([by_early, 16, 32, 64, 128]))


def test_density_decides_how_many():
    method = Correlation(adaptive=True)
    assert method.card.count == "content" and Correlation().card.count == "fixed"
    assert method(view(8)).anchor.tolist() == [1, 4, 5, 6, 7], "one for the blank tile, four for the other"
    assert method(view(2)).m == 2, "never more than the budget"
    assert Correlation()(view(8)).m == 8


def test_what_goes_joins_the_most_similar_key():
    """Two of the second tile stay, by early attention; 4 is most like 6, 5 most like 7."""
    keys = KEYS.clone()
    keys[4:] = torch.tensor([[1.0, 0, 0.5, 0], [0, 1, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])
    reduction = Correlation(many=0.0, alike=1.0)(view(4, keys=keys))
    assert reduction.anchor.tolist() == [1, 3, 6, 7]
    out = reduction.apply(X)[2:, 0]
    torch.testing.assert_close(out, torch.tensor([(1 * 16 + 3 * 64) / 4, (2 * 32 + 4 * 128) / 6]))


def test_outliers_of_the_last_layer_come_first():
    """Token 4 has the lowest early attention, but stands out late."""
    late = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1]])
    assert 4 in Correlation(many=0.0, alike=1.0)(view(2, late)).anchor.tolist()
    assert 4 not in Correlation(many=0.0, alike=1.0)(view(2)).anchor.tolist()


def test_draws_follow_early_attention():
    """Of the blank tile one token is drawn: about in proportion to 1, 4, 2, 3; the same for the same seed."""
    drawn = torch.zeros(8)
    for seed in range(300):
        drawn[Correlation(seed=seed)(view(5)).anchor] += 1
    assert Correlation(seed=3)(view(5)).anchor.tolist() == Correlation(seed=3)(view(5)).anchor.tolist()
    assert torch.allclose(drawn[:4] / 300, EARLY[0, :4], atol=0.1)


@pytest.mark.parametrize("fault", ["early=1.0", "alike=2.0", "many=-0.1"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"correlation:keep=64,{fault}")
