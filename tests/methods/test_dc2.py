import math

import torch

from foveate.methods.dc2 import DC2, joins
from foveate.tokens import View


def grid(angles: list[list[float]], k: int, **more) -> View:
    """Unit vectors at these degrees, on a grid."""
    flat = torch.tensor(angles).flatten().deg2rad()
    index = torch.arange(len(flat))
    width = len(angles[0])
    return View(torch.stack([flat.cos(), flat.sin()], 1), k, row=index // width, col=index % width, **more)


def test_average_linkage_by_hand():
    """In one square: 0 and 10 join at 1 - cos 10. With 40 their mean cosine is (cos 40 + cos 30) / 2; 180 comes last."""
    height, kept, gone = joins(grid([[0, 180], [10, 40]], 2))
    first, second = 1 - math.cos(math.radians(10)), 1 - (math.cos(math.radians(40)) + math.cos(math.radians(30))) / 2
    third = 1 - sum(math.cos(math.radians(180 - a)) for a in (0, 10, 40)) / 3
    torch.testing.assert_close(height, torch.tensor([first, second, third]))
    assert kept.tolist() == [0, 0, 0] and gone.tolist() == [2, 3, 1]
    reduction = DC2()(grid([[0, 180], [10, 40]], 2)).check()
    assert sorted(reduction.src[reduction.dst == reduction.dst[0]].tolist()) in ([0, 2, 3], [1])


def test_siblings_before_neighbours():
    """Tokens 1 and 2 are equal but lie in different squares; 0 and 1 resemble each other less, but are siblings."""
    view = grid([[0, 30, 30, 100], [0, 30, 30, 100]], 4)
    reduction = DC2()(view).check()
    home = torch.empty(8, dtype=torch.long)
    home[reduction.src] = reduction.dst
    assert home[1] != home[2] and home[0] == home[4] and home[1] == home[5]


def test_pieces_are_whole_squares_from_below():
    """A piece that reaches over a square holds all of it, whatever the budget."""
    torch.manual_seed(0)
    index = torch.arange(64)
    x = torch.randn(64, 5)
    for k in range(1, 64, 5):
        reduction = DC2()(View(x, k, row=index // 8, col=index % 8)).check()
        home = torch.empty(64, dtype=torch.long)
        home[reduction.src] = reduction.dst
        for piece in range(reduction.m):
            members = (home == piece).nonzero()[:, 0]
            squares = {(int(i) // 16, int(i) % 8 // 2) for i in members}
            if len(squares) > 1:
                for r, c in squares:
                    inside = [i for i in range(64) if (i // 16, i % 8 // 2) == (r, c)]
                    assert set(inside) <= set(members.tolist())


def test_exact_means_and_tiles():
    torch.manual_seed(1)
    x = torch.randn(5 * 9, 4)
    index = torch.arange(45)
    for k in (1, 2, 4, 7, 44, 45):
        view = View(x, k, tile=index // 9, row=index % 9 // 3, col=index % 3)
        reduction = DC2()(view).check()
        assert reduction.m == k and sorted(reduction.src.tolist()) == index.tolist()
    torch.testing.assert_close(DC2()(View(x, 1, tile=index // 9)).apply(x)[0], x.mean(0))
