import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.kmeans import KMeans, standard
from foveate.tokens import Extra, View

LINE = torch.tensor([0.0, 10.0, 1.0, 11.0, 2.0, 12.0])[:, None]


def test_features_alone():
    """Three of a kind twice; the middle one of each is nearest to its mean."""
    reduction = KMeans(places=0)(View(LINE, 2))
    assert reduction.dst.tolist() == [0, 1, 0, 1, 0, 1]
    assert reduction.anchor.tolist() == [2, 3]
    torch.testing.assert_close(reduction.apply(LINE)[:, 0], torch.tensor([1.0, 11.0]))


def test_places_alone_cut_the_picture():
    """Features that say nothing, or little beside the places: neighbours are merged."""
    for x in (torch.ones(6, 1), LINE):
        reduction = KMeans(places=1e4)(View(x, 2))
        assert reduction.dst.tolist() == [0, 0, 0, 1, 1, 1]
        assert reduction.anchor.tolist() == [1, 4]


def test_places_beside_features():
    """Two columns, alternating features. A weight decides whether kind or place makes the clusters."""
    x = torch.tensor([0.0, 1.0] * 4)[:, None]
    view = View.on_grid(x, 2, 4, 2)  # a column of zeros and a column of ones
    assert KMeans(places=0.5)(view).dst.tolist() == [0, 1] * 4
    chess = View.on_grid(torch.tensor([0.0, 1.0, 1.0, 0.0] * 2)[:, None], 2, 4, 2)
    assert sorted(KMeans(places=0.01)(chess).apply(chess.x)[:, 0].tolist()) == [0, 1]
    assert all(0.3 < mean < 0.7 for mean in KMeans(places=100)(chess).apply(chess.x)[:, 0].tolist())


def test_what_is_clustered():
    """Variance one over all columns of the features together, and `places` over x and y."""
    points = KMeans(places=0.25).points(View.on_grid(torch.randn(12, 5) * 100 + 7, 3, 3, 4))
    assert points.shape == (12, 7)
    torch.testing.assert_close(points.mean(0), torch.zeros(7), atol=1e-6, rtol=0)
    assert float(points[:, :5].square().sum(1).mean()) == pytest.approx(1)
    assert float(points[:, 5:].square().sum(1).mean()) == pytest.approx(0.25)
    assert KMeans(places=0).points(View(torch.ones(3, 2), 1)).tolist() == [[0, 0]] * 3
    torch.testing.assert_close(standard(torch.tensor([[2e30], [4e30]])), torch.tensor([[-1.0], [1.0]]))


def test_tiles_lie_in_the_picture():
    """The left half of the overview and the left crop are the same place."""
    tile, col = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    view = View(torch.ones(6, 1), 2, tile=tile, col=col, extras={"boxes": Extra(boxes)})
    assert KMeans()(view).dst.tolist() == [0, 1, 0, 0, 1, 1]


def test_rounds_improve_on_the_start():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=draw)

    def spread(rounds: int) -> float:
        reduction = KMeans(places=0, rounds=rounds)(View(x, 20))
        assert len(reduction.dst.unique()) == 20
        return float((x - reduction.apply(x)[reduction.dst]).square().sum())

    assert spread(0) > spread(1) > spread(10)


@pytest.mark.parametrize("fault", ["places=-1.0", "places=inf", "rounds=-1"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"kmeans:keep=64,{fault}")
