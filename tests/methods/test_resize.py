import pytest
import torch

from foveate.errors import MethodError
from foveate.methods.pool import Pool
from foveate.methods.resize import Resize
from foveate.tokens import View


def test_takes_the_top_left_rows_and_spreads_them():
    x = torch.arange(16.0)[:, None]
    reduction = Resize()(View.on_grid(x, 4, 4, 4))
    assert reduction.apply(x)[:, 0].tolist() == [0, 1, 4, 5], "where the encoder put the small picture's rows"
    assert reduction.anchor.tolist() == [5, 7, 13, 15], "the middle of each quarter of the picture"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_not_changed(dtype):
    x = torch.randn(48, 5).to(dtype)
    h, w = Resize().grid(6, 8, 20)
    reduction = Resize()(View.on_grid(x, 20, 6, 8))
    assert torch.equal(reduction.apply(x), x.view(6, 8, 5)[:h, :w].reshape(h * w, 5))


def test_same_grid_as_pool():
    for k in range(1, 49):
        view = View.on_grid(torch.randn(48, 2), k, 6, 8)
        assert Resize()(view).m == Pool()(view).m == torch.tensor(Resize().grid(6, 8, k)).prod()


@pytest.mark.parametrize("change", [{"tile": torch.arange(12) // 6}, {"row": torch.arange(12) // 3}])
def test_one_full_grid_only(change):
    view = View(torch.zeros(12, 2), 3, **{"row": torch.arange(12) // 4, "col": torch.arange(12) % 4} | change)
    with pytest.raises(MethodError, match="full grid"):
        Resize()(view)
