import pytest
import reference as ref
import torch

import foveate
from foveate.methods.hidrop import HiDrop
from foveate.plan import Plan
from foveate.routes import Route
from foveate.tokens import Extra, Reduction, View

ROW = torch.tensor([[0.10, 0.50, 0.20, 0.20], [0.40, 0.10, 0.30, 0.20]])  # mean 0.25, 0.30, 0.25, 0.20


def view(layer: int, k: int, depth: int = 8) -> View:
    return View(torch.zeros(4, 2), k, extras={"last_row": Extra(ROW, 1)}, layer=layer, depth=depth, entered=4)


def test_layers_of_the_paper():
    """Counted from 0: text alone before layer 8, filters after 9, 13, 15 and 17, no picture from 24 on."""
    assert HiDrop().window(32) == (8, [10, 14, 16, 18], 24)
    assert HiDrop().stops(32) == [0, 8, 10, 14, 16, 18, 24]
    assert [layer for layer in HiDrop().stops(32) if HiDrop().looks(layer, 32)] == [10, 14, 16, 18]
    assert HiDrop(inject=14, filters=(16, 19, 22, 25), exit=28).window(32) == (14, [16, 19, 22, 25], 28)


def test_the_mean_of_the_paper():
    """64 of 576 tokens in the mean layer: each filter leaves 31 %."""
    counts = HiDrop().counts(576, 64, 32)
    assert counts == [179, 56, 17, 5]
    mean = (2 * 576 + 4 * 179 + 2 * 56 + 2 * 17 + 6 * 5) / 32
    assert mean == pytest.approx(64, abs=0.2)


@pytest.mark.parametrize("k", range(43, 289, 35))
def test_any_mean_that_the_window_allows(k):
    counts = [576, *HiDrop().counts(576, k, 32)]
    assert counts == sorted(counts, reverse=True)
    assert sum(w * n for w, n in zip((2, 4, 2, 2, 6), counts, strict=True)) / 32 == pytest.approx(k, abs=0.5)


def test_means_beyond_the_window():
    assert HiDrop().counts(576, 288, 32) == HiDrop().counts(576, 500, 32) == [576] * 4
    assert HiDrop().counts(576, 1, 32) == [1] * 4


def test_what_happens_at_each_stop():
    """Of 8 layers 2 to 5 see the picture; filters act before 3, 4, where two of the four fall, and 5."""
    method = HiDrop()
    assert method.stops(8) == [0, 2, 3, 4, 5, 6]
    start, back = method(view(0, 1)), method(view(2, 1))
    assert isinstance(start, Route) and not len(start.running)
    assert isinstance(back, Route) and back.running.tolist() == [0, 1, 2, 3]
    some = method(view(4, 1))
    assert isinstance(some, Reduction) and some.anchor.tolist() == [1]
    assert method(view(6, 1)).m == 0
    assert HiDrop(shares=(0.75, 0.5, 0.5, 0.5))(view(3, 4)).anchor.tolist() == [0, 1, 2], "ties to the first"


def test_from_the_first_layer_to_the_last_but_one():
    assert HiDrop(inject=0, filters=(2,), exit=3).stops(4) == [0, 2, 3]
    assert HiDrop(inject=0)(view(0, 1)) is None
    assert HiDrop().stops(1) == [0] and HiDrop().stops(2) == [0, 1]


def test_shares_need_no_budget():
    plan = Plan.of("hidrop:shares=(0.5,0.25,0.1,0.1)")
    assert plan.steps[0].keep is None
    assert plan.steps[0].method.counts(100, 100, 32) == [50, 25, 10, 10]


@pytest.mark.parametrize(
    "options",
    [{"inject": 0.8}, {"exit": 1.5}, {"filters": ()}, {"shares": (0.5,)}, {"shares": (0.1, 0.2, 0.2, 0.2)}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=r"inject|exit|filters|shares"):
        HiDrop(**options)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
def test_text_first_and_last_and_positions_of_the_whole_prompt(name):
    """What runs in each of 4 layers, what its cache holds, and at which positions."""
    model, prompt = ref.model_of(name), [[3, ref.IMAGE_A, 4]]
    batch, seen = ref.batch_of(name, prompt), []
    positions = ref.positions_of(model, batch)
    with foveate.compress(model, "hidrop:shares=(0.5,0.25,0.25,0.25)") as run:
        decoder = model.get_decoder()
        hooks = [
            layer.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_embeddings"][0]), with_kwargs=True)
            for layer in decoder.layers
        ]
        with torch.no_grad():
            out = model(**batch, use_cache=True)
        for hook in hooks:
            hook.remove()
    (image,), (columns,) = run.report.images, ref.places(name, prompt, batch)[0]
    length, n = batch["input_ids"].shape[1], image.tokens_in
    m = max(1, -(-n // 4))
    assert [(layer, len(tokens)) for layer, tokens in image.layers] == [(0, 0), (1, n), (2, m), (3, 0)]
    assert image.average == (n + m) / 4
    held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert held == [length - n, length, length - n + m, length - n]
    whole = decoder.rotary_emb(torch.zeros(1), positions)[0]
    for layer, table in enumerate(seen):
        runs = torch.ones(length, dtype=torch.bool)
        tokens = [t for at, t in image.layers if at <= layer][-1]
        runs[columns] = False
        runs[columns[tokens]] = True
        torch.testing.assert_close(table, whole[..., runs, :])
