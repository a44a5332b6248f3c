import pytest
import torch

from foveate.parts import cluster, greedy
from foveate.parts.cluster import density_peaks, farthest_points, kmeans
from foveate.parts.similarity import gram


def test_two_heaps():
    """On a line: the middle of each heap is densest, and far from anything denser."""
    x = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.25])[:, None]
    home, centre = density_peaks(x, 2, neighbours=3)
    assert centre.tolist() == [1, 4]
    assert home.tolist() == [0, 0, 0, 1, 1, 1]


def test_copies_and_counts():
    x = torch.zeros(4, 2)
    for clusters in range(1, 5):
        home, centre = density_peaks(x, clusters)
        assert centre.tolist() == list(range(clusters))
        assert home[centre].tolist() == list(range(clusters)) and int(home.max()) < clusters
    home, centre = density_peaks(torch.ones(1, 3), 1)
    assert (home.tolist(), centre.tolist()) == ([0], [0])


def test_farthest_points():
    """From 2: 5 is farthest, then 0 is; the others join the nearest of these."""
    x = torch.tensor([0.0, 1.0, 4.0, 5.0, 9.0, 10.0])[:, None]
    home, centre = farthest_points(x, torch.tensor([2]), 3)
    assert centre.tolist() == [2, 5, 0]
    assert home.tolist() == [2, 2, 0, 0, 1, 1]
    for clusters in range(1, 5):  # copies
        home, centre = farthest_points(torch.ones(4, 2), torch.tensor([3]), clusters)
        assert len(centre.unique()) == clusters and home[centre].tolist() == list(range(clusters))


def test_kmeans_moves_until_nothing_moves():
    """On a line, from a bad start: means 1 and 8.67, then 3.67 and 10, and the token at 4 goes with the left."""
    x = torch.tensor([0.0, 1.0, 4.0, 9.0, 10.0, 11.0])[:, None]
    home, member = kmeans(x, torch.tensor([0, 0, 1, 1, 1, 1]), 2, rounds=10)
    assert home.tolist() == [0, 0, 0, 1, 1, 1]
    assert member.tolist() == [1, 4]
    home, member = kmeans(x, torch.tensor([0, 0, 1, 1, 1, 1]), 2, rounds=0)
    assert home.tolist() == [0, 0, 1, 1, 1, 1] and member.tolist() == [0, 3]


def test_kmeans_by_cosine():
    """Directions 0, 10, 80 and 90 degrees; with centres at length one, each counts by its direction alone."""
    angle = torch.tensor([0.0, 10.0, 80.0, 90.0]).deg2rad()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    home, _ = kmeans(x, torch.tensor([0, 1, 1, 1]), 2, rounds=10, spherical=True)
    assert home.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("clusters", [1, 2, 7, 20])
def test_kmeans_empties_no_cluster(clusters):
    """Three distinct rows cannot fill seven clusters by distance; copies have to part."""
    x = torch.eye(3)[torch.arange(20) % 3]
    for rounds in (0, 1, 5):
        home, member = kmeans(x, torch.arange(20) % clusters, clusters, rounds)
        assert home.unique().tolist() == list(range(clusters))
        assert home[member].tolist() == list(range(clusters))


@pytest.mark.parametrize("kind", ["random", "groups", "copies"])
def test_rows_made_for_picks_are_those_of_the_product(kind):
    """The picks and clusters are those of the whole product, for few clusters and for many."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(500, 48, generator=draw)
    heaps = 3 * torch.randn(40, 48, generator=draw)[torch.arange(500) % 40]
    x = {"random": x, "groups": x + heaps, "copies": x[torch.arange(500) % 90]}[kind]
    square, first = x.square().sum(1), torch.tensor([7])
    near = gram(x).mul_(2).sub_(square[:, None]).sub_(square).clamp_(max=0).fill_diagonal_(0)
    for clusters in (1, 30, 80, 300):
        home, centre = farthest_points(x, first, clusters)
        assert torch.equal(centre, greedy.apart(near, first, clusters, total=False))
        expected = near.index_select(1, centre).argmax(1)
        expected[centre] = torch.arange(clusters)
        assert torch.equal(home, expected)


@pytest.mark.parametrize("spherical", [False, True])
def test_centres_that_stay_need_no_new_product(spherical, monkeypatch):
    x = torch.randn(500, 48, generator=torch.Generator().manual_seed(0))
    home = torch.arange(500) % 100
    few = kmeans(x, home, 100, 10, spherical)
    monkeypatch.setattr(cluster, "AHEAD", 100)
    whole = kmeans(x, home, 100, 10, spherical)
    assert torch.equal(few[0], whole[0]) and torch.equal(few[1], whole[1])
