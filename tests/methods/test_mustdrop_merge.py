import pytest
import torch

from foveate.methods.mustdrop_merge import MustDropMerge, merged
from foveate.tokens import View


def grid(x: torch.Tensor, k: int, side: int, **more) -> View:
    index = torch.arange(len(x))
    return View(x, k, row=index // side, col=index % side, **more)


def test_the_most_uniform_window_goes_first():
    """Windows of 2 x 2 on 4 x 4: top left equal (mean cosine 1), the others drawn at random."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    x[[0, 1, 4, 5]] = torch.ones(8)
    reduction = MustDropMerge(window=2)(grid(x, 13, 4)).check()
    assert reduction.m == 13
    assert sorted(reduction.src[reduction.dst == reduction.dst[0]].tolist()) == [0, 1, 4, 5]
    torch.testing.assert_close(reduction.apply(x)[reduction.anchor.tolist().index(4)], torch.ones(8))


def test_mean_cosine_of_pairs_by_hand():
    """Of (1,0), (0,1), (1,0): cosines 0, 1, 0 make 1/3, less than 1/2 of a pair at 60 degrees."""
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0.5, 0.75**0.5]])
    home = torch.tensor([0, 0, 0, 1, 1])
    reduction = merged(x, home, 1, torch.ones(5)).check()
    assert reduction.m == 4 and sorted(reduction.src[reduction.dst == reduction.dst[-1]].tolist()) == [3, 4]
    # Two more must go: the other window loses them whole.
    assert merged(x, home, 3, torch.ones(5)).m == 2


def test_a_window_in_part_starts_with_its_most_typical():
    """One of four goes: the two rows that are most like all are averaged, the odd one stays."""
    x = torch.tensor([[1.0, 0], [1, 0], [0.9, 0.1], [0, 1]])
    reduction = MustDropMerge(window=2)(grid(x, 3, 2)).check()
    pair = reduction.src[reduction.dst == reduction.dst.mode().values].tolist()
    assert len(pair) == 2 and 3 not in pair


def test_windows_of_windows():
    x = torch.randn(81, 6, generator=torch.Generator().manual_seed(1))
    for k in (9, 8, 3, 1):
        reduction = MustDropMerge()(grid(x, k, 9)).check()
        assert reduction.m == k and sorted(reduction.src.tolist()) == list(range(81))
    torch.testing.assert_close(MustDropMerge()(grid(x, 1, 9)).apply(x)[0], x.mean(0))
    tiles = View(x, 2, tile=torch.arange(81) // 27)
    assert MustDropMerge()(tiles).m == 2, "fewer than tiles"


def test_where_it_merges():
    assert list(MustDropMerge().stops(23)) == [1] and list(MustDropMerge().stops(1)) == [0]
    with pytest.raises(ValueError, match="window"):
        MustDropMerge(window=1)
