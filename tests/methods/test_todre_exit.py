import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError
from foveate.methods.todre_exit import ToDREExit
from foveate.tokens import Extra, View

# Two heads, two words, two tokens. Shares of the picture: head 0 gives 0.1 and 0.2, head 1 gives 0.3 and 0.0. Mean 0.15.
ROWS = torch.tensor([[[0.05, 0.05], [0.20, 0.00]], [[0.10, 0.20], [0.00, 0.00]]])


def view(rows: torch.Tensor = ROWS) -> View:
    return View(torch.zeros(2, 3), 2, extras={"text_rows": Extra(rows, 27)}, layer=28, depth=32)


def test_share_of_the_texts_attention_by_hand():
    torch.testing.assert_close(ToDREExit().score(view()), torch.tensor([0.0875, 0.0625]))
    assert ToDREExit(tau=0.14)(view()) is None
    assert ToDREExit(tau=0.16)(view()).m == 0
    assert ToDREExit(tau=0.0)(view(0 * ROWS)) is None, "below, not at"


def test_the_default_is_a_tenth_after_seven_eighths():
    assert list(ToDREExit().stops(32)) == [28] and list(ToDREExit().stops(4)) == [3]
    assert ToDREExit()(view()) is None and ToDREExit()(view(ROWS / 2)).m == 0
    assert list(ToDREExit(layers=(0.5, 0.75, 20)).stops(32)) == [16, 20, 24]


def test_no_budget_is_needed():
    assert Plan.of("todre_exit").steps[0].keep is None
    for fault in ("tau=1.5", "layers=()"):
        with pytest.raises(PlanError, match=fault.split("=")[0]):
            Plan.of(f"todre_exit:{fault}")


def entered(model, batch, plan):
    """Columns that enter each layer, and the report."""
    found = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda module, args: found.append(args[0].shape[1]))
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad(), compress(model, plan) as run:
        logits = model(**batch).logits
    for hook in hooks:
        hook.remove()
    return found, run.report, logits


def test_stages_run_separately_or_together():
    """The `works` sentence: the diversity stage, the exit, and both, with a fused kernel; the exit adapts to the input."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    assert model.config.text_config._attn_implementation == "sdpa"
    exit_ = "todre_exit:layers=(1,2,3),tau="
    assert entered(model, batch, "todre:keep=9")[0] == [18] * 4
    assert entered(model, batch, exit_ + "1.0")[0] == [45, 9, 9, 9]
    assert entered(model, batch, "todre:keep=9 > " + exit_ + "1.0")[0] == [18, 9, 9, 9]
    assert entered(model, batch, exit_ + "0.0")[0] == [45] * 4
    shares = shares_of(model, batch)
    tau = sorted(shares)[0] + 1e-4
    layer = 1 + next(i for i, share in enumerate(shares) if share < tau)
    columns, report, _ = entered(model, batch, f"{exit_}{tau}")
    assert columns == [45] * layer + [9] * (4 - layer)
    assert [number for number, _ in report.images[0].layers] == [layer]


def shares_of(model, batch) -> list[float]:
    """By the stock model with eager attention: what the text gives to the picture in layers 0, 1 and 2."""
    eager = tiny.build("llava", attn="eager")
    with torch.no_grad():
        maps = eager(**batch, output_attentions=True).attentions
    image = batch["input_ids"][0] == tiny.IMAGE
    after = int(image.nonzero()[-1]) + 1
    return [one[0].mean(0)[after:, image].sum(1).mean().item() for one in maps[:3]]


def test_keep_one_turns_it_off():
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    assert entered(model, batch, "todre_exit:tau=1.0,keep=1.0")[0] == [45] * 4
    assert entered(model, batch, "todre_exit:tau=1.0,keep=0.5")[0] == [45, 45, 45, 9]
