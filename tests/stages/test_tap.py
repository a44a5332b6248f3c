"""Attention rows against those of the eager model."""

import copy

import pytest
import torch

import tiny
from foveate.stages import tap

TOWERS = ["llava", "qwen3_vl", "gemma3"]


def modules(model):
    """The tower's attention modules."""
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    return [m for name, m in tower.named_modules() if name.split(".")[-1] in ("self_attn", "attn")]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TOWERS)
def test_outputs_stay_and_rows_are_right(name, attn):
    model, eager = tiny.build(name, attn=attn), tiny.build(name, attn="eager")
    batch = tiny.inputs(name, model, [[3, ("image", "a"), 2]])
    with torch.no_grad():
        stock = model(**batch).logits
    module, seen, weights = modules(model)[2], [], []
    config = module.config
    remove = tap.tap(module, lambda m, q, k, mask, kw: seen.append((m, q, k, mask, kw)))
    again = tap.tap(module, lambda *_: seen.append(None))
    assert module.config is not config and modules(model)[1].config is modules(model)[3].config
    hook = modules(eager)[2].register_forward_hook(lambda m, args, out: weights.append(out))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, stock)
        eager(**batch)
    hook.remove()
    again()
    again()
    assert module.config is not config
    remove()
    assert module.config is config and module not in tap._readers
    (m, q, k, mask, kwargs), both = seen
    assert m is module and both is None
    if name == "qwen3_vl":  # hands out no weights
        assert q.shape == k.shape and q.shape[2] == len(batch["pixel_values"])
        return
    scale = kwargs.get("scaling") or q.shape[-1] ** -0.5
    torch.testing.assert_close(tap.rows(q, k, scale, mask), weights[0][1], atol=1e-6, rtol=0)
    for chunk in (5, 256):
        received = tap.received(q, k, scale, mask, chunk)
        torch.testing.assert_close(received, weights[0][1].mean(2), atol=1e-6, rtol=0)


def test_shared_key_heads():
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 6, 3, 8, generator=draw), torch.randn(2, 2, 7, 8, generator=draw)
    expected = (q @ k.repeat_interleave(3, 1).mT * 0.3).softmax(-1)
    torch.testing.assert_close(tap.rows(q, k, 0.3), expected)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_received_counts_only_who_can_see(kind):
    """Two pictures in one sequence, apart by a block mask: each as if it were alone."""
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 9, 4, generator=draw), torch.randn(1, 2, 9, 4, generator=draw)
    part = torch.tensor([0] * 5 + [1] * 4)
    mask = (part[:, None] == part)[None, None]
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    apart = tap.received(q, k, 0.5, mask, 4)
    for places in (slice(0, 5), slice(5, 9)):
        alone = tap.received(q[:, :, places], k[:, :, places], 0.5)
        torch.testing.assert_close(apart[..., places], alone)


def test_kernels_are_shown_the_true_name():
    """Flash attention picks its library by the name in the module's config, so it must not be ours."""
    from transformers import AttentionInterface

    names = []

    def kernel(module, query, key, value, attention_mask=None, **kwargs):
        names.append(module.config._attn_implementation)
        return query.transpose(1, 2), None

    AttentionInterface.register("flash_by_name", kernel)
    model = tiny.build("llava")
    module = modules(model)[0]
    own = module.config
    module.config = copy.copy(own)
    module.config._attn_implementation_internal = "flash_by_name"
    remove = tap.tap(module, lambda *_: names.append("read"))
    assert "flash" in module.config._attn_implementation
    with torch.no_grad():
        model.model.get_image_features(
            **{"pixel_values": tiny.inputs("llava", model, [[("image", "a")]])["pixel_values"]}
        )
    assert names == ["read", "flash_by_name"]
    remove()
