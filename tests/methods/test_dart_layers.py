import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError
from foveate.methods.dart import DART
from foveate.methods.dart_layers import DARTLayers
from foveate.tokens import Extra, View

ANGLES = torch.deg2rad(torch.tensor([0.0, 30, 60, 90, 120, 150]))
X = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
WORDS = torch.tensor([[7.0, 0], [0, 0.1]])


def view(k: int, keys: list[list[float]], text_keys: list[list[float]]) -> View:
    extras = {
        "layer_keys": Extra(torch.tensor(keys)),
        "text_keys": Extra(torch.tensor(text_keys)),
        "text": Extra(WORDS),
    }
    return View(X, k, extras=extras, layer=2, depth=8)


def keys(strong: int) -> list[list[float]]:
    return [[9.0, 0] if i == strong else [1.0, 1] for i in range(6)]


def test_pivots_have_strong_keys_and_are_compared_by_states():
    """Pivot 0, and the word at 90 degrees, whose key is stronger though its state is not.

    A share of one each: the pivot takes 5, at 150 degrees; the word takes 1, at 60 degrees from it.
    """
    method = DARTLayers(pivots=1, words=1)
    assert method(view(3, keys(0), [[1.0, 0], [2, 0]])).anchor.tolist() == [0, 1, 5]
    # The other word points to 0 degrees: what is left that is least like it is 4.
    assert method(view(3, keys(0), [[2.0, 0], [1, 0]])).anchor.tolist() == [0, 4, 5]
    # Pivot 3 at 90 degrees is least like 0, the word at 0 degrees then least like 5.
    assert method(view(3, keys(3), [[2.0, 0], [1, 0]])).anchor.tolist() == [0, 3, 5]


def test_the_norm_is_l1_over_all_heads():
    """Two heads of width 2: 4 x 2 is more than 7 in one place, whose length is greater."""
    heads = [[0.0] * 4, [7, 0, 0, 0], [2, 2, 2, 2], *[[0.0] * 4] * 3]
    assert DARTLayers(pivots=1, words=0)(view(1, heads, [[0.0] * 4] * 2)).anchor.tolist() == [2]


@given(st.integers(0, 99), st.integers(1, 30))
def test_the_same_rule_as_before_the_language_model(seed, k):
    """With states as keys, and the words of the question after the picture, it is `dart`."""
    draw = torch.Generator().manual_seed(seed)
    x, words = torch.randn(30, 6, generator=draw), torch.randn(9, 6, generator=draw)
    names = {"question": words, "layer_keys": x, "text_keys": words, "text": words}
    one = View(x, k, extras={name: Extra(value) for name, value in names.items()})
    assert torch.equal(DARTLayers()(one).anchor, DART()(one).anchor)


def test_where_it_stops():
    assert list(DARTLayers().stops(32)) == [2] and list(DARTLayers(layer=5).stops(32)) == [5]
    for fault in ("pivots=0", "words=-1", "layer=-1"):
        with pytest.raises(PlanError, match=fault.split("=")[0]):
            Plan.of(f"dart_layers:keep=64,{fault}")


def test_pivots_stay_and_kernels_are_left_alone():
    """In a model, with a fused kernel: the four tokens with the strongest keys of layer 1 are among those that stay."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    keys = []
    attention = model.model.language_model.layers[1].self_attn
    hook = attention.k_proj.register_forward_hook(lambda module, args, out: keys.append(out[0]))
    with torch.no_grad(), compress(model, "dart_layers:keep=12") as run:
        model(**batch)
    hook.remove()
    (image,) = run.report.images
    assert model.config.text_config._attn_implementation == "sdpa"
    assert image.layers[0][0] == 2 and len(image.layers[0][1]) == 12
    start = int((batch["input_ids"][0] == tiny.IMAGE).nonzero()[0])
    place = start + torch.arange(36)
    turned = rotated(model, keys[0], place)
    strong = turned.abs().sum(1).sort(descending=True, stable=True).indices[:4]
    assert set(strong.tolist()) <= set(image.survivors.tolist())


def rotated(model, keys: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """(n, c) keys as attention sees them."""
    language = model.model.language_model
    cos, sin = language.rotary_emb(keys, place[None])
    heads = keys[place].view(len(place), -1, cos.shape[-1])
    left, right = heads.chunk(2, -1)
    return (heads * cos[0][:, None] + torch.cat([-right, left], -1) * sin[0][:, None]).flatten(1)
