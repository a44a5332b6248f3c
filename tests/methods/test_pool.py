import pytest
import torch

from foveate.methods.pool import Pool
from foveate.parts.grid import fit
from foveate.tokens import View


def test_two_by_two_blocks():
    x = torch.arange(16.0)[:, None]  # row by row
    reduction = Pool()(View.on_grid(x, 4, 4, 4))
    assert reduction.apply(x)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]  # (0+1+4+5)/4, ...
    assert reduction.anchor.tolist() == [0, 2, 8, 10]  # four are as near to each centre; the first of them
    assert reduction.sizes(torch.ones(16)).tolist() == [4, 4, 4, 4]


def test_bins_share_a_row_where_sizes_do_not_divide():
    x = torch.tensor([[1.0], [2.0], [6.0]])
    reduction = Pool()(View(x, 2))
    assert reduction.apply(x)[:, 0].tolist() == [1.5, 4.0]  # 0-1 and 1-2
    assert reduction.anchor.tolist() == [0, 2]


@pytest.mark.parametrize(("height", "width", "k"), [(6, 6, 11), (24, 24, 192), (3, 7, 5), (5, 1, 2), (10, 14, 139)])
def test_is_adaptive_average_pooling(height, width, k):
    x = torch.randn(height * width, 3)
    reduction = Pool()(View.on_grid(x, k, height, width))
    picture = x.T.view(1, 3, height, width)
    expected = torch.nn.functional.adaptive_avg_pool2d(picture, fit(height, width, k)).flatten(2)[0].T
    torch.testing.assert_close(reduction.apply(x), expected)


def test_merged_tokens_weigh_more():
    x = torch.tensor([[0.0], [4.0]])
    assert Pool()(View(x, 1, size=torch.tensor([3.0, 1.0]))).apply(x).item() == 1.0


def test_missing_tokens():
    """A 4 x 4 grid of which an earlier step left the top left block and one token of the bottom right block."""
    row, col = torch.tensor([0, 0, 1, 1, 3]), torch.tensor([0, 1, 0, 1, 3])
    x = torch.tensor([[1.0], [2.0], [3.0], [6.0], [9.0]])
    reduction = Pool()(View(x, 4, row=row, col=col))
    assert reduction.apply(x)[:, 0].tolist() == [3.0, 9.0]  # two bins are empty and give no slot
    assert reduction.anchor.tolist() == [0, 4]


def test_cut_off_padding_does_not_count():
    """Rows 2 and 3 of a padded tile: the grid is 2 x 4, not 4 x 4."""
    x = torch.arange(8.0)[:, None]
    view = View(x, 2, row=torch.tensor([2] * 4 + [3] * 4), col=torch.tensor([0, 1, 2, 3] * 2))
    assert Pool()(view).apply(x)[:, 0].tolist() == [2.5, 4.5]


def test_budget_is_split_over_tiles():
    tile = torch.tensor([0] * 4 + [1] * 8)
    row = torch.tensor([0, 0, 1, 1] + [0] * 4 + [1] * 4)
    col = torch.tensor([0, 1] * 2 + [0, 1, 2, 3] * 2)
    x = torch.arange(12.0)[:, None]
    reduction = Pool()(View(x, 3, tile=tile, row=row, col=col))
    assert reduction.apply(x)[:, 0].tolist() == [1.5, 6.5, 8.5]  # one for the first tile, two for the second


def test_fewer_slots_than_tiles():
    tile = torch.tensor([0, 1, 1, 2, 2])
    x = torch.arange(5.0)[:, None]
    reduction = Pool()(View(x, 1, tile=tile, col=torch.tensor([0, 0, 1, 0, 1])))
    assert reduction.apply(x)[:, 0].tolist() == [1.5], "the first of the largest tiles"
