import pytest
import torch

import tiny
from foveate import compress
from foveate.methods.dfmr import DFMR
from foveate.tokens import View


def grid(x: torch.Tensor, k: int, **more) -> View:
    """A view of a square map (h, w, d)."""
    h, w, d = x.shape
    index = torch.arange(h * w)
    return View(x.reshape(-1, d), k, row=index // w, col=index % w, **more)


def noisy(side: int, noise: float, seed: int = 0) -> torch.Tensor:
    draw = torch.randn(side, side, 16, generator=torch.Generator().manual_seed(seed))
    return torch.ones(16) + noise * draw


def test_deviation_by_hand():
    """One window of 2 x 2 with values 1, 1, 3, 3: deviation 1, root mean square sqrt(5)."""
    view = grid(torch.tensor([1.0, 1.0, 3.0, 3.0]).view(2, 2, 1), 3)
    assert DFMR().deviation(view, 2) == pytest.approx(5**-0.5)
    assert DFMR(threshold=0.45, largest=2).factor(view) == 2
    assert DFMR(threshold=0.44, largest=2).factor(grid(torch.tensor([1.0, 1.0, 3.0, 3.0]).view(2, 2, 1), 4)) == 1


def test_a_flat_picture_is_pooled_harder():
    """The `works` sentence: under one threshold, and the factor can be read."""
    method = DFMR(threshold=0.5)
    flat, between, detailed = (grid(noisy(12, noise), 143) for noise in (0.1, 0.68, 3.0))
    assert method.factor(flat) == 3 and method(flat).m == 16
    assert method.deviation(between, 3) > 0.5 > method.deviation(between, 2)
    assert method.factor(between) == 2 and method(between).m == 36
    assert method.factor(detailed) == 2, "the budget is below all 144 tokens"
    assert DFMR(threshold=0.5).factor(grid(noisy(12, 3.0), 144)) == 1


def test_windows_are_means():
    x = noisy(5, 1.0)
    reduction = DFMR(threshold=9, largest=2)(grid(x, 9)).check()
    assert reduction.m == 9
    torch.testing.assert_close(reduction.apply(x.reshape(-1, 16))[0], x[:2, :2].reshape(-1, 16).mean(0))
    torch.testing.assert_close(reduction.apply(x.reshape(-1, 16))[-1], x[4, 4])


def test_the_budget_is_a_cap():
    for k in (35, 16, 8, 1):
        view = grid(noisy(12, 3.0), k)
        assert DFMR(threshold=0)(view).m <= k
    tiles = View(torch.randn(8, 4), 3, tile=torch.arange(8) // 2, col=torch.arange(8) % 2)
    assert DFMR()(tiles).m == 3, "more tiles than tokens asked for"


def test_the_report_tells_the_factor():
    model = tiny.build("llava")
    with compress(model, "dfmr:threshold=99,largest=2", keep=0.9) as run:
        model(**tiny.inputs("llava", model, [[3, ("image", "a"), 5]]))
    image = run.report.images[0]
    assert image.tokens_in == 4 * image.tokens_out


@pytest.mark.parametrize("options", [{"threshold": -1.0}, {"threshold": float("inf")}, {"largest": 0}])
def test_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DFMR(**options)
