import torch

from foveate.parts.cluster import density_peaks


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
