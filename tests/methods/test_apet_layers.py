import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError
from foveate.methods.apet import ApET
from foveate.methods.apet_layers import ApETLayers
from foveate.tokens import View

# A plane that tokens 0 and 1 span; 4 and 5 stick out of it, 2 and 3 do not.
X = torch.tensor([[9.0, 0, 0], [0, 9, 0], [3, 4, 0], [2, 1, 0], [4, 1, 2], [1, 2, 5]])


def test_by_hand():
    """The basis is 0, farthest from the mean, and 1, farthest from it; of the others 5 has the largest error, 5.

    What is left, 2, 3 and 4, is averaged into 5.
    """
    one = View(X, 3, layer=4, depth=8)
    answer = ApETLayers(basis=2)(one)
    assert answer.anchor.tolist() == [0, 1, 5]
    torch.testing.assert_close(answer.apply(X)[2], X[2:].mean(0))


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_mathematics_is_that_of_the_stage_before(overwrite):
    one = View(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), 12)
    mine, theirs = ApETLayers(basis=4, overwrite=overwrite)(one), ApET(basis=4, overwrite=overwrite)(one)
    assert torch.equal(mine.anchor, theirs.anchor) and torch.equal(mine.apply(one.x), theirs.apply(one.x))


def test_half_way_and_options():
    assert list(ApETLayers().stops(32)) == [16] and list(ApETLayers(layer=2).stops(32)) == [2]
    for fault in ("basis=0", "layer=1.5"):
        with pytest.raises(PlanError, match=fault.split("=")[0]):
            Plan.of(f"apet_layers:keep=64,{fault}")


@pytest.mark.parametrize("plan", ["apet_layers:keep=9,basis=4", "apet:keep=18,basis=4 > apet_layers:keep=9,basis=4"])
def test_a_chosen_number_of_basis_tokens_with_a_fused_kernel(plan):
    """The `works` sentence: no attention map is asked for, and the error of every token can be read."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    entered = []
    hook = model.model.language_model.layers[2].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0]), with_kwargs=True
    )
    with torch.no_grad(), compress(model, plan) as run:
        model(**batch)
    hook.remove()
    (image,) = run.report.images
    (stop,) = image.layers
    assert stop[0] == 2 and len(stop[1]) == 9 and set(stop[1].tolist()) <= set(image.kept.tolist())
    n, start = len(image.kept), int((batch["input_ids"][0] == tiny.IMAGE).nonzero()[0])
    x = entered[0][0, start : start + n]  # all columns: our hook comes first
    method, one = ApET(basis=4), View(x, 9)
    basis = method.chosen(one)
    errors = method.errors(x, basis)
    assert len(basis) == 4 and errors.shape == (n,)
    assert torch.equal(image.kept[method(one).anchor], stop[1])
