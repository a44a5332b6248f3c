"""Counted FLOPs against torch's own counter over the whole prefill, and against numbers worked out by hand."""

import json
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from reference import IMAGE_A, MIXED, batch_of, model_of, traces
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Qwen3VLMoeConfig

import tiny
from foveate import compress
from foveate.bench import flops
from foveate.bench import hollow as shapes
from foveate.bench.flops import PARTS, Flops, count, unknown_to_torch
from foveate.bench.hollow import hollow, shape
from foveate.bench.runner import prefill
from foveate.bench.times.speed import Shape, build
from foveate.errors import UnsupportedError

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "internvl", "llava_next", "qwen3_vl")
PLANS = (
    "divprune:keep=0.5", "fastv:keep=0.3", "pdrop:keep=0.125", "vtw:layer=2", "tome_tower:keep=0.5",
    "composite", "fewer_efforts:window=3,heads=((0,),(1,))", "ima", "snapkv:keep=0.3,observe=4", "gemfilter:keep=0.4",
)  # fmt: skip
PROMPT = [[3, IMAGE_A, 4]]


def seen_by_torch(model, batch, plan=None):
    """All of a plain forward call, and the report."""
    counter = FlopCounterMode(display=False, custom_mapping=unknown_to_torch())
    with nullcontext() if plan is None else compress(model, plan) as run, counter:
        prefill(model, batch)
    return counter.get_total_flops(), None if run is None else run.report


@cache
def stock(name: str) -> Flops:
    return count(model_of(name), batch_of(name, PROMPT))


@pytest.mark.parametrize("name", FAMILIES)
def test_stock_prefill_is_what_torch_counts(name):
    whole, _ = seen_by_torch(model_of(name), batch_of(name, PROMPT))
    assert stock(name).prefill == pytest.approx(whole, rel=0.001)
    assert stock(name).method == 0 and stock(name).ratio == 1.0


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_under_a_plan_is_what_torch_counts(name, plan):
    model, batch = model_of(name), batch_of(name, PROMPT)
    found = count(model, batch, plan, stock=stock(name))
    whole, report = seen_by_torch(model, batch, plan)
    assert found.prefill == pytest.approx(whole, rel=0.001)
    assert found.ratio == found.total / stock(name).total
    if plan.startswith("snapkv"):  # it saves steps of decoding alone, and its own work comes on top
        assert found.decode < stock(name).decode and found.prefill == stock(name).prefill + found.method
    else:
        assert found.ratio < 1
    assert found.columns == tuple(columns(report, layer) for layer in range(4))


def columns(report, layer):
    """What the report says of how many columns ran in a layer."""
    found = report.sequence_out
    for image in report.images:
        runs = [image.kept, *(tokens for first, tokens in image.layers if first <= layer)][-1]
        found -= len(image.kept) - len(runs)
    return found


@pytest.mark.parametrize("name", ["llama4", "ovis2", "aya_vision", "glm4v"])
def test_experts_tables_windows_and_other_mergers(name):
    model, batch = model_of(name), batch_of(name, PROMPT)
    for plan in (None, "pdrop:keep=0.25"):
        whole, _ = seen_by_torch(model, batch, plan)
        assert count(model, batch, plan).prefill == pytest.approx(whole, rel=0.001)


@pytest.mark.parametrize("plan", [None, "fastervlm:keep=0.5", "fastv:keep=0.3"])
def test_batches_with_padding_and_the_eager_kernel(plan):
    model, batch = model_of("llava", "eager"), batch_of("llava", MIXED)
    whole, _ = seen_by_torch(model, batch, plan)
    assert count(model, batch, plan).prefill == pytest.approx(whole, rel=0.001)


# -- by hand -----------------------------------------------------------------------------------------------------------

WIDTH, MLP, HEADS, KEYS, HEAD = 64, 96, 4, 2, 16  # the tiny language model
WEIGHTS = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KEYS * HEAD + 3 * WIDTH * MLP


def layer(queries, keys):
    """Two FLOPs for each weight and row; queries with keys, and the weights of that with values, for each head."""
    return 2 * (queries * WEIGHTS + 2 * HEADS * queries * keys * HEAD)


def test_parts_by_hand():
    """36 tokens and 8 of text; FastV keeps 11 from layer 2 on, and reads one row of attention in layer 1."""
    found = count(model_of("llava"), batch_of("llava", PROMPT), "fastv:keep=11", stock=stock("llava"))
    assert found.columns == (44, 44, 19, 19)
    assert found.layers == (layer(44, 44), layer(44, 44), layer(19, 19), layer(19, 19))
    assert found.head == 2 * WIDTH * tiny.VOCAB, "the last position only"
    assert found.method == 2 * HEADS * HEAD * 44
    assert found.decode == 2 * layer(1, 45) + 2 * layer(1, 20) + found.head
    patches, rows = 2 * 36 * WIDTH * 3 * tiny.PATCH**2, 36 + 1
    block = 2 * (rows * (4 * WIDTH * WIDTH + 2 * WIDTH * MLP) + 2 * HEADS * rows * rows * HEAD)
    assert found.tower == patches + 4 * block
    assert found.connector == 2 * 36 * 2 * WIDTH * WIDTH


def test_a_layer_that_is_begun_ahead_of_its_turn_is_choosing():
    """PyramidDrop reads attention that a layer will compute; its projections run for that once more."""
    found = count(model_of("llava"), batch_of("llava", PROMPT), "pdrop:keep=0.125", stock=stock("llava"))
    assert found.layers == tuple(layer(n, n) for n in found.columns)
    projections = WIDTH * (HEADS + 2 * KEYS) * HEAD
    ahead = sum(2 * n * (projections + HEADS * HEAD) for n in found.columns[:3])
    assert found.method == ahead


def test_experts_by_hand():
    """Each row goes through the experts that were chosen for it, or, if it was repeated for each, through one."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(8, 2 * 5, 6))
            self.down_proj = nn.Parameter(torch.zeros(8, 6, 5))

    rule = flops._rule(Experts())
    x, chosen = torch.zeros(7, 6), torch.zeros(7, 2, dtype=torch.long)
    assert rule(Experts(), (x, chosen, torch.zeros(7, 2)), x) == 7 * 2 * (60 + 30)
    assert rule(Experts(), (x,), x) == 7 * (60 + 30)


def test_routed_experts_of_a_model():
    text = tiny._text("qwen3_vl_moe_text", head_dim=16, rope_parameters=tiny._mrope([4, 2, 2], mrope_interleaved=True))
    text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    vision = tiny._FAMILIES["qwen3_vl"].vision | {"model_type": "qwen3_vl_moe_vision"}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **tiny._FAMILIES["qwen3_vl"].top)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    found = count(model, batch_of("qwen3_vl", PROMPT), "vtw:layer=2")
    attention = layer(1, 1) - 2 * 3 * WIDTH * MLP - 4 * HEADS * HEAD
    experts, router = 2 * 2 * 3 * WIDTH * 32, 2 * WIDTH * 4
    for n, one in zip(found.columns, found.layers, strict=True):
        assert one == n * (attention + experts + router) + 4 * HEADS * HEAD * n * n


# -- what is around it -------------------------------------------------------------------------------------------------


def test_plain_data_and_parts_that_add_up():
    found = count(model_of("llava"), batch_of("llava", PROMPT), "divprune:keep=0.5", stock=stock("llava"))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["prefill"] == sum(sum(data[p]) if p == "layers" else data[p] for p in PARTS)
    assert data["total"] == data["prefill"] + data["decode"] and data["ratio"] == found.ratio
    assert data["uncompressed"]["plan"] == "" and data["uncompressed"]["total"] == stock("llava").total


def test_the_uncompressed_model_is_counted_where_nobody_did():
    found = count(model_of("llava"), batch_of("llava", PROMPT), "divprune:keep=0.5")
    assert found.stock == stock("llava")


def test_nothing_is_left_on_the_model():
    model = model_of("llava")
    count(model, batch_of("llava", PROMPT), "fastv:keep=0.3")
    before = traces(model)
    count(model, batch_of("llava", PROMPT), "pdrop:keep=0.3")
    with pytest.raises(UnsupportedError, match="all pictures"):
        count(model, batch_of("llava", PROMPT), "tome_tower:keep=20/total")
    assert traces(model) == before


# -- without weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_model_without_weights_counts_like_the_real_one(name):
    model, batch = hollow(model_of(name).config), batch_of(name, PROMPT)
    for plan in (None, "divprune:keep=0.5", "pdrop:keep=0.25"):
        assert count(model, batch, plan) == count(model_of(name), batch, plan), plan
    real, empty = (count(m, batch, "tome_tower:keep=0.5") for m in (model_of(name), model))
    assert empty.layers == real.layers and empty.method == real.method
    assert empty.tower == pytest.approx(real.tower, rel=0.01), "how many are left of a window is up to the picture"
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in model_of(name).parameters()) / 5


def test_a_shape_is_a_model_and_its_prompt(monkeypatch):
    config = build(Shape(layers=2, width=64, heads=2, kv_heads=1, vocab=32000)).config
    monkeypatch.setitem(shapes.SHAPES, "small", lambda: config)
    model, inputs = shape("small", images=2, text=10)
    assert inputs["input_ids"].shape == (1, 2 * 576 + 10)
    found = count(model, inputs, "norm:keep=64")
    assert found.columns == (2 * 64 + 10,) * 2 and found.stock.columns == (2 * 576 + 10,) * 2
    assert found.stock.layers[0] == 2 * (1162 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192) + 2 * 2 * 1162**2 * 32)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("llava-1.5-7b", 6_738_415_616 + 262_144 * 2), ("llava-1.5-13b", 13_015_864_320 + 327_680 * 2)],
)
def test_published_sizes(name, weights):
    """Those of the language models, with 64 more words than theirs."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.SHAPES[name]().text_config)
    assert sum(p.numel() for p in model.parameters()) == weights


def test_an_unknown_shape_names_those_there_are():
    with pytest.raises(UnsupportedError, match="no shape") as caught:
        shape("llava-2")
    assert "llava-1.5-7b" in caught.value.hint
