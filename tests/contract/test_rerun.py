"""A second run on the tokens that the first layers point at: the stock model with all others masked from the start."""

from __future__ import annotations

import pytest
import reference as ref
import torch
from reference import MIXED, STEPS, batch_of, generated, logits_of, model_of
from test_layers import close, layers_of

import foveate
import tiny
from foveate.budget import Budget
from foveate.errors import UnsupportedError

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
every_kernel = pytest.mark.parametrize("attn", ["sdpa", "eager"])


def pointed_at(name, batch, layer: int, keep, kernel: int = 5) -> torch.Tensor:
    """(b, L) what the last prompt token's query points at in a layer of the stock model, by hand; text alone is exact."""
    model, seen = model_of(name, "eager"), {}
    module = layers_of(model)[layer].self_attn

    def look(query, key):
        seen["query"], seen["key"] = query, key

    kept = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    with Queries(module, look):
        logits_of(model, batch)
    image = batch["input_ids"] == tiny.image_token_id(name, model)
    for row, mask in enumerate(batch["attention_mask"].bool()):
        columns = mask.nonzero()[:, 0]
        keys, query = seen["key"][row][:, columns], seen["query"][row][:, columns[-1]]
        keys = keys.repeat_interleave(len(query) // len(keys), 0)
        value = (keys * query[:, None]).sum(-1).sum(0)
        pooled = torch.nn.functional.pad(value, (kernel // 2, kernel // 2)).unfold(0, kernel, 1).mean(-1)
        pooled[-1] = torch.inf
        k = Budget.parse(keep).counts([len(columns)])[0]
        kept[row, columns[pooled.sort(descending=True, stable=True).indices[:k]]] = True
    return kept, image


class Queries:
    """Shows queries and keys of a module, rotated, by a kernel of our own."""

    def __init__(self, module, look):
        self.module, self.look = module, look

    def __enter__(self):
        import copy

        from transformers import AttentionInterface

        def attend(module, query, key, value, mask, scaling, **_):
            self.look(query, key)
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            weights = (query @ key.mT * scaling + mask[..., : key.shape[2]]).softmax(-1)
            return (weights @ value).transpose(1, 2).contiguous(), weights

        AttentionInterface.register("showsQueries", attend)
        self.config, self.module.config = self.module.config, copy.copy(self.module.config)
        self.module.config._attn_implementation_internal = "showsQueries"

    def __exit__(self, *_):
        self.module.config = self.config


@every_family
@every_kernel
def test_the_second_run_is_the_stock_model_on_what_is_left(name, attn):
    model, batch = model_of(name, attn), batch_of(name)
    kept, image = pointed_at(name, batch, 2, 0.6)
    with foveate.compress(model, "gemfilter:keep=0.6,at_layer=2") as run:
        ours, (sequences, said) = logits_of(model, batch), generated(model, batch)
    where = ref.places(name, MIXED, batch)
    for one in run.report.images:  # structure follows its rule, and a picture never vanishes
        columns = where[one.sample][one.ordinal]
        content = columns[one.kind == 0]
        if kept[one.sample, content].any():
            stays = columns[one.kept][one.kind[one.kept] == 0]
            assert torch.equal(stays, content[kept[one.sample, content]])
        kept[one.sample, columns] = False
        kept[one.sample, columns[one.kept]] = True
    hidden = batch | {"attention_mask": kept.long()}
    ref.same_rows(ours, logits_of(model, hidden | {"position_ids": ref.positions_of(model, batch)}), kept)
    expected, expected_said = generated(model, hidden | {"position_ids": ref.generation_positions(model, batch)})
    close(said, expected_said)
    assert torch.equal(sequences[:, -STEPS:], expected[:, -STEPS:])
    assert (kept & ~image).sum() < (batch["attention_mask"].bool() & ~image).sum(), "text went, too"


@every_family
def test_all_of_it_changes_no_bit(name):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, "gemfilter:keep=1.0"):
        assert torch.equal(logits_of(model, batch), ref.stock(name)[0])


@every_family
def test_batch_is_its_rows(name):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, "gemfilter:keep=0.5,at_layer=1"):
        _, together = generated(model, batch, 4)
        rows = [generated(model, batch_of(name, [p], first=i), 4)[1] for i, p in enumerate(MIXED)]
    close(together, torch.cat(rows))


@every_family
def test_removing_restores(name):
    model, batch = model_of(name), batch_of(name)
    logits = ref.stock(name)[0]  # first calls leave marks of the library's own
    before = ref.traces(model)
    with foveate.compress(model, "gemfilter:keep=0.5"):
        logits_of(model, batch)
        hook = layers_of(model)[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits_of(model, batch)
        hook.remove()
        logits_of(model, batch)
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llava_next"])
def test_among_other_steps(name):
    """After a reduction, before others; the budget is the prompt's, as the first run saw it."""
    model, batch = model_of(name), batch_of(name)
    plan = "divprune:keep=0.5 > gemfilter:keep=20,at_layer=1 > fastv:keep=0.5,layer=2 > snapkv:keep=8,observe=2"
    with foveate.compress(model, plan) as run:
        _, together = generated(model, batch, 4)
        report = run.report
        rows = [generated(model, batch_of(name, [p], first=i), 4)[1] for i, p in enumerate(MIXED)]
    close(together, torch.cat(rows))
    for image in report.images:
        assert [name.split(":")[0] for name, _, _ in image.stages][:3] == ["divprune", "gemfilter", "fastv"]
    assert {one.eviction.m for one in report.cache} <= set(range(1, 9))


def test_a_long_text():
    """Without pictures: 40 tokens to 12, decoded as the stock model decodes with the others hidden."""
    model, batch = model_of("llava"), batch_of("llava", [[40]])
    kept, _ = pointed_at("llava", batch, 2, 12)
    with foveate.compress(model, "gemfilter:keep=12,at_layer=2") as run:
        out = model.generate(
            **batch, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    assert kept.sum() == 12 == run.report.sequence_out
    assert out.past_key_values.layers[0].keys.shape[2] == 12 + 5
    hidden = batch | {"attention_mask": kept.long(), "position_ids": ref.generation_positions(model, batch)}
    expected, said = generated(model, hidden, 6)
    close(torch.stack(out.logits, 1), said)
    assert torch.equal(out.sequences[:, -6:], expected[:, -6:])


def test_refusals():
    model = model_of("llava")
    with pytest.raises(UnsupportedError, match="the other order"):
        foveate.compress(model, "fastv:keep=0.5 > gemfilter:keep=0.5")
    with pytest.raises(UnsupportedError, match="runs again once"):
        foveate.compress(model, "gemfilter:keep=0.5 > gemfilter:keep=0.5")
    with pytest.raises(UnsupportedError, match="lost on the way"):
        foveate.compress(model, "gemfilter:keep=0.5", positions="preserved")
