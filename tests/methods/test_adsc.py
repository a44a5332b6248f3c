import pytest
import torch

from foveate.methods.adsc import ADSC
from foveate.plan import Plan
from foveate.tokens import View


def lengths(method: ADSC, n: int, k: int, depth: int = 32) -> dict[int, int]:
    """Tokens from each stop on."""
    stops, seen, entered = method.stops(depth), {}, n
    for i, stop in enumerate(stops):
        view = View(torch.zeros(n, 2), min(k, n), left=len(stops) - 1 - i, layer=stop, depth=depth, entered=entered)
        seen[stop] = n = method(view).check().m
    return seen


def test_the_length_steps_down_at_exactly_those_layers():
    assert lengths(ADSC(), 576, 72) == {8: 288, 16: 144, 24: 72}
    assert lengths(ADSC(layers=(4, 20)), 576, 64) == {4: 192, 20: 64}


def test_a_factor_needs_no_budget():
    assert Plan.of("adsc:factor=2").steps[0].keep is None
    assert lengths(ADSC(layers=(4, 20), factor=3), 576, 576) == {4: 192, 20: 64}
    assert lengths(ADSC(factor=2), 576, 200) == {8: 288, 16: 201, 24: 200}, "a budget binds the last stop"
    assert lengths(ADSC(factor=2), 3, 3) == {8: 2, 16: 1, 24: 1}
    with pytest.raises(ValueError, match="divides nothing"):
        ADSC(factor=1.0)


def test_the_middle_of_each_stretch_stays():
    assert ADSC()(View(torch.zeros(12, 2), 4)).anchor.tolist() == [1, 4, 7, 10]


def test_every_second_row_and_column():
    view = View.on_grid(torch.zeros(16, 2), 4, 4, 4)
    assert ADSC()(view).anchor.tolist() == [2, 6, 10, 14]
    assert ADSC(grid=True)(view).anchor.tolist() == [0, 2, 8, 10]


def test_a_grid_has_the_budget_too():
    for k in range(1, 36):
        answer = ADSC(grid=True)(View.on_grid(torch.zeros(35, 2), k, 5, 7)).check()
        assert answer.m == k and bool((answer.anchor[1:] > answer.anchor[:-1]).all())


def test_a_grid_survives_stops():
    view = View.on_grid(torch.zeros(64, 2), 4, 8, 8, left=1)
    first = ADSC(grid=True)(view).anchor
    assert len(first) == 16
    places = torch.stack([view.row, view.col], 1)[first]
    again = View(torch.zeros(16, 2), 4, row=places[:, 0], col=places[:, 1])
    second = places[ADSC(grid=True)(again).anchor]
    assert second[:, 0].unique().numel() == second[:, 1].unique().numel() == 2
