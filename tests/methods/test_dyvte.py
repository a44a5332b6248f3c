from dataclasses import replace

import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError
from foveate.methods.dyvte import DyVTE
from foveate.tokens import Extra, View


def exit_of(method: DyVTE, shares: list[float]) -> int:
    """The first layer without the picture, if layer i gives it ``shares[i]``, marks handed on as between real layers."""
    depth, marks = len(shares) + 1, {}
    for layer in method.stops(depth):
        row = torch.tensor([[0.25, 0.75], [0.75, 0.25]]) * shares[layer - 1]  # two heads, two tokens
        one = View(torch.zeros(2, 3), 2, extras={"last_row": Extra(row)}, layer=layer, depth=depth, marks=marks)
        marks = {**marks, **method.carry(one)}
        if (answer := method(replace(one, marks=marks))) is not None:
            assert answer.m == 0
            return layer
    return depth


def test_several_calm_layers_in_a_row():
    """Shares of layers 0 to 4. Layer 1 is calm but 2 is not; 3 and 4 are, so that 5 runs without the picture."""
    shares = [0.5, 0.01, 0.3, 0.02, 0.01, 0.01]
    assert exit_of(DyVTE(), shares) == 5
    assert exit_of(DyVTE(patience=1), shares) == 2
    assert exit_of(DyVTE(patience=3), shares) == 6
    assert exit_of(DyVTE(patience=4), shares) == 7, "never: there are six"


def test_below_not_at_the_threshold():
    assert exit_of(DyVTE(tau=0.5, patience=1), [0.5, 0.75, 0.25]) == 3
    assert exit_of(DyVTE(tau=0.0, patience=1), [0.0, 0.0]) == 3


def test_the_share_is_the_mean_over_heads():
    row = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.0, 0.1]])
    one = View(torch.zeros(3, 2), 3, extras={"last_row": Extra(row)})
    torch.testing.assert_close(DyVTE().score(one), torch.tensor([0.2, 0.1, 0.1]))


def test_no_budget_is_needed_and_numbers_are_checked():
    assert Plan.of("dyvte").steps[0].keep is None
    for fault in ("tau=-0.1", "patience=0"):
        with pytest.raises(PlanError, match=fault.split("=")[0]):
            Plan.of(f"dyvte:{fault}")


def shares_of(name: str, batch) -> torch.Tensor:
    """(samples, layers) by the stock model with eager attention."""
    with torch.no_grad():
        maps = tiny.build(name, attn="eager")(**batch, output_attentions=True).attentions
    image = batch["input_ids"] == tiny.IMAGE
    return torch.stack([torch.stack([one[i].mean(0)[-1, image[i]].sum() for one in maps]) for i in range(len(image))])


def generated(model, batch, plan: str):
    """Columns that each layer works on, call by call, and the report."""
    widths = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad(), compress(model, plan) as run:
        model.generate(**batch, max_new_tokens=3, do_sample=False)
    for hook in hooks:
        hook.remove()
    return widths, run.report


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_exit_layer_of_every_sample_can_be_read(name):
    """The `works` sentence: generate, and read for each sample where the picture left; later layers run on text alone."""
    model = tiny.build(name)
    batch = tiny.inputs(name, model, [[3, ("image", "a"), 5], [2, ("image", "b"), 7]])
    shares = shares_of(name, batch)[:, :3]
    ordered = shares.flatten().sort().values
    seen = set()
    for tau in ((ordered[1:] + ordered[:-1]) / 2).tolist():
        expected = [next((i + 1 for i, share in enumerate(row) if share < tau), None) for row in shares.tolist()]
        widths, report = generated(model, batch, f"dyvte:patience=1,tau={tau}")
        found = [image.layers[0][0] if image.layers else None for image in report.images]
        assert found == expected
        assert all(not len(tokens) for image in report.images for _, tokens in image.layers)
        if None not in found:
            text = (batch["attention_mask"].bool() & (batch["input_ids"] != tiny.IMAGE)).sum(1)
            assert all(width == text.max() for width in widths[max(found) : 4]), "text positions only"
        seen.add(tuple(found))
    assert any(a != b for a, b in seen), "samples leave at layers of their own"
