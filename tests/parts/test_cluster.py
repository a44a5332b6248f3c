import pytest
import torch

from foveate.parts.cluster import density_peaks, farthest_points, kmeans


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
