"""What layers leave out for an image's tokens, against a plain reading of it: every weight worked out, then set to zero."""

from __future__ import annotations

import copy
import sys
from contextlib import contextmanager

import pytest
import reference as ref
import torch
from reference import IMAGE_A, IMAGE_B, MIXED, batch_of, generated, logits_of, model_of
from test_layers import close, layers_of

import foveate
import tiny
from foveate.errors import MethodError, UnsupportedError
from foveate.method import WorkMethod
from foveate.routes import Work
from foveate.stages import work

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
every_kernel = pytest.mark.parametrize("attn", ["sdpa", "eager"])
METHODS = {name: cls for name, cls in foveate.registry.classes().items() if issubclass(cls, WorkMethod)}


@contextmanager
def plainly(model, where, report, length, layers=range(4), sees=None, heads=None, hidden=None, feeds=True):
    """The eager model, in some layers of which weights are taken away, one rule after another.

    Args:
        where: columns of each image, prompt by prompt.
        sees: None, "itself", "nothing" or the side of a square: what image rows see of images.
        heads: those that look at images.
        hidden: function (layer, image) -> (rows, columns, mask) of text rows that do not see some columns.
        feeds: whether image rows go through the feed-forward network.
    """
    from transformers import AttentionInterface

    images = [(i, where[i.sample][i.ordinal]) for i in report.images]

    def attend(module, query, key, value, mask, scaling, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.mT * scaling
        logits = logits + mask[..., : key.shape[2]]
        prompt, number = query.shape[2] == length, NUMBER[id(module)]
        if number in layers and prompt:
            for image, columns in images:
                if isinstance(sees, int) and sees:
                    for a, one in enumerate(columns):
                        for b, other in enumerate(columns):
                            same = image.tile[a] == image.tile[b] and image.kind[a] == image.kind[b] == 0
                            near = max(abs(int(image.row[a] - image.row[b])), abs(int(image.col[a] - image.col[b])))
                            ok = (same and near <= sees // 2) or a == b
                            at = (image.sample, slice(None), one, other)
                            logits[at] = (
                                (query[at[:3]] * key[image.sample, :, other]).sum(-1) * scaling if ok else -torch.inf
                            )
                if hidden is not None:
                    rows, some, gone = hidden(number, image)
                    logits[image.sample, :, rows[:, None], some] += torch.where(gone, -torch.inf, 0.0)
        weights = logits.softmax(-1)
        out = weights @ value
        if number in layers:
            for image, columns in images:
                if prompt and sees == "itself":
                    out[image.sample, :, columns] = value[image.sample, :, columns]
                if prompt and sees == "nothing":
                    out[image.sample, :, columns] = 0
                if heads is not None:
                    off = [h for h in range(query.shape[1]) if h not in heads]
                    seen = torch.cat([c for i, c in images if i.sample == image.sample])
                    for h in off:
                        w = weights[image.sample, h].clone()
                        w[:, seen] = 0
                        out[image.sample, h] = w @ value[image.sample, h]
                        if prompt:
                            out[image.sample, h, seen] = 0
        return out.transpose(1, 2).contiguous(), weights

    AttentionInterface.register("plain_reading", attend)
    NUMBER.clear()
    configs, hooks = [], []
    for i, layer in enumerate(layers_of(model)):
        module = layer.self_attn
        NUMBER[id(module)] = i
        configs.append((module, module.config))
        module.config = copy.copy(module.config)
        module.config._attn_implementation_internal = "plain_reading"
        if not feeds and i in layers:
            feed = getattr(layer, "mlp", None) or layer.feed_forward

            def skip(module, args, output):
                first = output[0] if isinstance(output, tuple) else output
                made = first.view(*args[0].shape[:2], -1).clone()
                if made.shape[1] == length:
                    for image, columns in images:
                        made[image.sample, columns] = 0
                return (made, *output[1:]) if isinstance(output, tuple) else made

            hooks.append(feed.register_forward_hook(skip))
    try:
        yield
    finally:
        for module, config in configs:
            module.config = config
        for hook in hooks:
            hook.remove()


NUMBER: dict[int, int] = {}
CASES = {
    "composite:start=1": {"layers": range(1, 4), "sees": "nothing"},
    "composite:sees=itself,end=3": {"layers": range(3), "sees": "itself"},
    "fewer_efforts:window=3": {"sees": 3},
    "fewer_efforts:window=0,heads=((0,),(1,2),(0,1,2,3),())": {"heads": "listed"},
    "fewer_efforts:window=3,heads=((0,),(1,2),(0,1,2,3),())": {"sees": 3, "heads": "listed"},
    "ima:interval=1": {"layers": range(1, 3), "feeds": False},
    "ima:interval=2,spare=0": {"layers": (0, 2), "feeds": False},
}
LISTED = [(0,), (1, 2), (0, 1, 2, 3), ()]


@every_family
@every_kernel
@pytest.mark.parametrize("plan", CASES)
def test_what_is_left_out_counts_as_zero(name, attn, plan):
    """Prompt logits and greedy steps of a padded batch."""
    model, batch, rules = model_of(name, attn), batch_of(name), dict(CASES[plan])
    length = batch["input_ids"].shape[1]
    with foveate.compress(model, plan) as run:
        ours, (sequences, said) = logits_of(model, batch), generated(model, batch, 4)
    eager, where = model_of(name, "eager"), ref.places(name, MIXED, batch)
    listed = rules.pop("heads", None)
    assert run.report.tokens_in == run.report.tokens_out
    valid = batch["attention_mask"].bool()
    if listed is None:
        with plainly(eager, where, run.report, length, **rules):
            theirs, (expected, expected_said) = logits_of(eager, batch), generated(eager, batch, 4)
    else:
        with each_layer(eager, where, run.report, length, rules):
            theirs, (expected, expected_said) = logits_of(eager, batch), generated(eager, batch, 4)
    close(ours[valid], theirs[valid])
    close(said, expected_said)
    assert torch.equal(sequences, expected)
    assert (ours - ref.stock(name)[0])[valid].abs().max() > 1e-3, "something was left out"


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "gemma3"])
@every_kernel
@pytest.mark.parametrize("gathered", [0, 1000], ids=["gathered", "masked"])
def test_neighbours_gathered_or_masked(name, attn, gathered, monkeypatch):
    """Two ways to the same attention; which one is quicker depends on how much it leaves out."""
    monkeypatch.setattr(work, "GATHERED", gathered)
    model, batch = model_of(name, attn), batch_of(name)
    with foveate.compress(model, "fewer_efforts:window=3") as run:
        ours = logits_of(model, batch)
    eager, valid = model_of(name, "eager"), batch["attention_mask"].bool()
    with plainly(eager, ref.places(name, MIXED, batch), run.report, batch["input_ids"].shape[1], sees=3):
        close(ours[valid], logits_of(eager, batch)[valid])


@contextmanager
def each_layer(model, where, report, length, rules):
    """Other heads in each layer: one rule for each, the first found in charge."""
    from contextlib import ExitStack

    from transformers import AttentionInterface

    with ExitStack() as stack:
        functions = []
        for heads in LISTED:
            stack.enter_context(plainly(model, where, report, length, heads=heads, **rules))
            functions.append(AttentionInterface()._global_mapping["plain_reading"])

        def attend(module, *args, **kwargs):
            return functions[NUMBER[id(module)]](module, *args, **kwargs)

        AttentionInterface.register("plain_reading", attend)
        yield


@every_family
@every_kernel
def test_text_that_looks_away(name, attn):
    """CMAI: the rows hidden in a layer follow from the maps of the layer before, of the model that runs."""
    model, batch = model_of(name, attn), batch_of(name)
    length, share = batch["input_ids"].shape[1], 0.4
    with foveate.compress(model, f"cmai:focus={share},start=2") as run:
        ours = logits_of(model, batch)
    eager, where = model_of(name, "eager"), ref.places(name, MIXED, batch)
    image_ids = batch["input_ids"] == tiny.image_token_id(name, model)

    def hidden(maps):
        def rule(layer, image):
            row, columns = image.sample, where[image.sample][image.ordinal]
            content = columns[image.kind == 0]
            text = ~image_ids[row] & batch["attention_mask"][row].bool()
            rows = (text & (torch.arange(length) > columns[-1])).nonzero()[:, 0]
            before = maps[layer - 1][row].mean(0)
            focus = before[rows][:, rows] @ before[rows][:, content]
            k = max(1, int(share * len(content) + 0.5))
            gone = torch.ones_like(focus, dtype=torch.bool)
            gone.scatter_(1, focus.sort(dim=1, descending=True, stable=True).indices[:, :k], False)
            return rows, content, gone

        return rule

    maps = {}
    for layer in (1, 2):  # the maps of a layer depend on what was hidden before it
        with plainly(eager, where, run.report, length, range(2, layer + 1), hidden=hidden(maps)), torch.no_grad():
            maps[layer] = eager(**batch, output_attentions=True).attentions[layer]
    with plainly(eager, where, run.report, length, range(2, 4), hidden=hidden(maps)):
        theirs = logits_of(eager, batch)
    valid = batch["attention_mask"].bool()
    close(ours[valid], theirs[valid])


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_changes_no_bit(name, method):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, method, keep=1.0):
        assert torch.equal(logits_of(model, batch), ref.stock(name)[0])


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_batch_is_its_rows(name, method):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, method):
        _, together = generated(model, batch, 4)
        rows = [generated(model, batch_of(name, [p], first=i), 4)[1] for i, p in enumerate(MIXED)]
    close(together, torch.cat(rows))


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_removing_restores(name, method):
    model, batch = model_of(name), batch_of(name)
    logits = ref.stock(name)[0]
    before = ref.traces(model)
    with foveate.compress(model, method):
        logits_of(model, batch)
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llava_next"])
def test_after_a_reduction_and_before_an_exit(name):
    """All of them together, on what an earlier step left; a batch is its rows."""
    model, batch = model_of(name), batch_of(name)
    plan = "divprune:keep=0.6 > fastv:layer=1,keep=0.5 > fewer_efforts:window=3,heads=((0,1),(1,2)),exit=3"
    with foveate.compress(model, plan) as run:
        _, together = generated(model, batch, 4)
        report = run.report
        rows = [generated(model, batch_of(name, [p], first=i), 4)[1] for i, p in enumerate(MIXED)]
    close(together, torch.cat(rows))
    assert all(image.layers[-1][0] == 3 and not len(image.layers[-1][1]) for image in report.images)


def test_blind_heads_want_their_run():
    """Nothing of the cache's tensors says that a head does not look: the stock model would let it look again."""
    model, batch = model_of("llava"), batch_of("llava", MIXED[:1])
    with foveate.compress(model, "fewer_efforts:window=0,heads=((0,),(1,))"):
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    mask = torch.ones_like(out.sequences)
    with pytest.raises(UnsupportedError, match="attach again"):
        model.generate(out.sequences, attention_mask=mask, past_key_values=out.past_key_values, max_new_tokens=2)


def test_refusals():
    model, batch = model_of("llava"), batch_of("llava", [[3, IMAGE_A, IMAGE_B, 4]])
    with foveate.compress(model, "fewer_efforts:heads=((9,),)"), pytest.raises(MethodError, match="a layer that has 4"):
        logits_of(model, batch)
    for bad in (Work(sees="some"), Work(sees=torch.tensor([[5]])), Work(heads=torch.tensor([1.0]))):
        with pytest.raises(MethodError, match="the work"):
            bad.check(3)
    flash = copy.deepcopy(model)
    flash.config.get_text_config()._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedError, match="row by row"):
        foveate.compress(flash, "composite")
    assert "flash_attn" not in sys.modules
