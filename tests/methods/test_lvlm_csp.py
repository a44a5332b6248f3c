import pytest
import reference as ref
import torch

import foveate
from foveate.methods.lvlm_csp import LVLMCSP
from foveate.routes import Route
from foveate.tokens import Extra, View

ROW = torch.tensor([[0.10, 0.50, 0.20, 0.20], [0.40, 0.10, 0.30, 0.20]])  # mean 0.25, 0.30, 0.25, 0.20


def view(layer: int, k: int = 2, depth: int = 4) -> View:
    return View(torch.zeros(4, 2), k, extras={"last_row": Extra(ROW, 1)}, layer=layer, depth=depth, entered=4)


def test_three_phases():
    method = LVLMCSP()
    assert method.window(32) == (10, 19) and method.stops(32) == [0, 10, 19]
    assert [layer for layer in method.stops(32) if method.looks(layer, 32)] == [19]
    assert method.window(4) == (1, 2)
    first, then, last = (method(view(layer)) for layer in method.stops(4))  # 1, 4, 1, 1: 7 / 4 is nearest to 2
    assert isinstance(first, Route) and first.running.tolist() == [0]
    assert isinstance(then, Route) and then.running.tolist() == [0, 1, 2, 3]
    assert last.anchor.tolist() == [1]


def test_the_mean_is_met():
    """A tenth before layer 10 and from 19 on is 0.35 on average, the saving that is reported."""
    assert LVLMCSP().count(560, 196, 32) == round((0.35 * 32 - 9) / 23 * 560) == 54
    for n in (36, 576):
        for k in range(-(-9 * n // 32) + 1, n + 1, 7):
            m = LVLMCSP().count(n, k, 32)
            assert (23 * m + 9 * n) / 32 == pytest.approx(k, abs=0.5)
    assert LVLMCSP().count(576, 10, 32) == 1


def test_representatives_are_evenly_spaced():
    one = View.on_grid(torch.zeros(36, 2), 4, 6, 6)
    assert LVLMCSP().representatives(one, 4).tolist() == [0, 9, 18, 27]
    assert LVLMCSP().representatives(one, 5).tolist() == [0, 7, 14, 21, 28], "i * floor(36 / 5)"
    assert LVLMCSP(spaced="grid").representatives(one, 4).tolist() == [7, 10, 25, 28]


def test_phases_may_be_left_out():
    assert LVLMCSP(scatter=0, prune=2).stops(4) == [0, 2]
    assert LVLMCSP(scatter=0, prune=2)(view(0)) is None
    assert LVLMCSP(scatter=1, prune=4).window(4) == (1, 3)


@pytest.mark.parametrize("options", [{"scatter": 0.6}, {"prune": 1.5}, {"spaced": "random"}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=r"scatter|prune|spaced"):
        LVLMCSP(**options)


def test_layers_run_on_few_all_and_few():
    model, prompt = ref.model_of("llava"), [[3, ref.IMAGE_A, 4]]
    batch = ref.batch_of("llava", prompt)
    with foveate.compress(model, "lvlm_csp:keep=0.5") as run, torch.no_grad():
        out = model(**batch, use_cache=True)
    (image,) = run.report.images
    assert [(layer, len(tokens)) for layer, tokens in image.layers] == [(0, 12), (1, 36), (2, 12)]
    assert image.layers[0][1].tolist() == list(range(0, 36, 3)) and image.average == 18
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [20, 44, 20, 20]
