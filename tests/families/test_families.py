"""What each adapter says of its family, checked on a small random instance of the real class.

Which patches feed a token is not believed but measured: by the gradient of the token's feature with respect to the
output of the tower's last block that counts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers

import foveate
import tiny
from foveate.errors import UnsupportedError
from foveate.families import Layout, adapt
from foveate.method import Card, Method
from foveate.stages.picture import content_of
from foveate.tokens import Kind, Reduction, View

PROMPTS = [[3, ("image", "a"), 5], [2, ("image", "b"), 4, ("image", "a"), 3], [9]]
IMAGES = [1, 2, 0]
families = pytest.mark.parametrize("name", tiny.FAMILIES)


@cache
def model_of(name: str):
    return tiny.build(name)


@cache
def batch_of(name: str) -> dict[str, Any]:
    return tiny.inputs(name, model_of(name), PROMPTS)


def encoded(name: str):
    model = model_of(name)
    family = adapt(model)
    arguments = family.encoder_arguments(batch_of(name))
    output = family.core.get_image_features(**arguments, return_dict=True)
    return family, arguments, output


@dataclass(frozen=True)
class Looker(Method):
    """Keeps every second token and remembers its views."""

    card = Card(name="looker", title="test", needs=("attention", "keys"))
    seen: list = None  # type: ignore[assignment]

    def __call__(self, view: View) -> Reduction:
        self.seen.append(view)
        return Reduction.drop(torch.arange(view.k), view.n)


@families
def test_layouts_cover_all_placeholders(name: str) -> None:
    family, arguments, output = encoded(name)
    layouts = family.layouts(arguments, output)
    batch = batch_of(name)
    assert sum(one.n for one in layouts) == int((batch["input_ids"] == tiny.image_token_id(name, model_of(name))).sum())
    assert sum(one.n for one in layouts) == sum(len(r) for r in family.rows(output))
    for one in layouts:
        content = one.kind == Kind.CONTENT
        assert (one.source[content] >= 0).any(1).all()
        assert (one.source[~content] < 0).all()
        for t, (height, width) in enumerate(one.grids):
            inside = (one.tile == t) & content
            assert (one.row[inside] < height).all()
            assert (one.col[inside] < width).all()
            places = one.row[inside] * width + one.col[inside]
            assert len(places.unique()) == len(places)
        assert len(one.boxes) == len(one.grids)


def fed_by(family: Any, arguments: dict[str, Any]) -> None:
    """Raise unless the patches that feed each token are those of its layout, by the gradient."""
    seen: list[torch.Tensor] = []
    block = family.blocks()[-2 if getattr(family.config, "vision_feature_layer", -1) == -2 else -1]
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        with torch.enable_grad():
            output = family.core.get_image_features(**arguments, return_dict=True)
    finally:
        handle.remove()
    layouts, features = family.layouts(arguments, output), torch.cat(family.rows(output))
    layout, row = Layout.join(layouts), family.cls_row()
    assert len(features) == layout.n
    content = (layout.kind == Kind.CONTENT).nonzero()[:, 0]
    for i in content[torch.linspace(0, len(content) - 1, 40).long()].tolist():
        grad = torch.autograd.grad(features[i].sum(), seen[0], retain_graph=True)[0].abs().sum(-1)
        grad = grad.reshape(-1, grad.shape[-1])  # (rows of the tower's batch, tokens)
        grad = grad if row is None else grad[:, torch.arange(grad.shape[1]) != row % grad.shape[1]]
        values = torch.cat(family.per_unit([grad[..., None]], layouts, arguments))
        assert set((values[:, 0] > 0).nonzero()[:, 0].tolist()) == set(layout.source[i].tolist()) - {-1}, f"token {i}"


@families
def test_source_patches_are_those_that_feed_a_token(name: str) -> None:
    family, arguments, _ = encoded(name)
    fed_by(family, arguments)


@families
def test_extras_are_the_towers_own_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the weights and keys of the eager model, read off its attention function."""
    model = tiny.build(name, attn="eager")
    family = adapt(model)
    wanted, seen = family.score_attention(), []
    library = sys.modules[type(wanted).__module__]
    function = "vision_eager_attention_forward" if name == "llama4" else "eager_attention_forward"
    eager = getattr(library, function)

    def note(module, query, key, *args, **kwargs):
        output, weights = eager(module, query, key, *args, **kwargs)
        if module is wanted:
            seen.append((weights, key))
        return output, weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(library, function, note)
        output = family.core.get_image_features(**family.encoder_arguments(batch_of(name)), return_dict=True)
    layouts = family.layouts(family.encoder_arguments(batch_of(name)), output)
    row, attention, keys = family.cls_row(), [], []
    for full, key in seen:
        one = full.sum(2) / (full > 0).sum(2) if row is None else full[:, :, row]
        keep = torch.ones(one.shape[-1], dtype=torch.bool)
        if row is not None:
            keep[row] = False
        attention.append(one.mT[:, keep])
        keys.append(key.mean(1)[:, keep])
    arguments = family.encoder_arguments(batch_of(name))
    expected = family.per_unit(attention, layouts, arguments), family.per_unit(keys, layouts, arguments)
    looker = Looker(seen=[])
    with torch.no_grad(), foveate.compress(model, looker, keep=0.5):
        tapped = family.core.get_image_features(**arguments, return_dict=True)
    assert all(map(torch.equal, family.rows(tapped), family.rows(output))), "listening changes nothing"
    with torch.no_grad(), foveate.compress(model_of(name), looker, keep=0.5) as run:
        model_of(name).generate(**batch_of(name), max_new_tokens=2, do_sample=False)
    assert [len(run.report.of(i)) for i in range(3)] == IMAGES
    assert all(i.tokens_out == -(-i.tokens_in // 2) or i.tokens_out == i.tokens_in // 2 for i in run.report.images)
    wide = torch.cat([v.need("attention").mT for v in looker.seen])
    means = torch.cat([v.need("keys") for v in looker.seen])
    by_token, key_token = [], []
    for a, k, layout in zip(*expected, layouts, strict=True):
        source = layout.source[layout.kind == Kind.CONTENT]
        there = (source >= 0)[..., None]
        by_token.append((a[source.clamp(min=0)] * there).sum(1))
        key_token.append((k[source.clamp(min=0)] * there).sum(1) / there.sum(1))
    torch.testing.assert_close(wide, torch.cat(by_token), atol=1e-5, rtol=0)
    torch.testing.assert_close(means, torch.cat(key_token), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_packed_pictures_are_scored_one_by_one(name: str) -> None:
    """Flash kernels get all pictures in one call, with borders instead of a mask; here in a stand-in for the CPU."""

    def packed(module, query, key, value, attention_mask=None, **kwargs):
        sdpa = transformers.AttentionInterface()["sdpa"]
        lengths = kwargs.pop("cu_seq_lens_q").diff().tolist()
        pieces = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
        more = {k: v for k, v in kwargs.items() if k in ("scaling", "dropout")}
        return torch.cat([sdpa(module, *piece, None, is_causal=False, **more)[0] for piece in pieces], 1), None

    transformers.AttentionInterface.register("stand_in_flash_attention", packed)
    model = tiny.build(name)
    seen: list[list[View]] = []
    for flash in (False, True):
        for module in model.model.visual.modules():
            if flash and hasattr(module, "config"):
                module.config._attn_implementation_internal = "stand_in_flash_attention"
        looker = Looker(seen=[])
        with torch.no_grad(), foveate.compress(model, looker, keep=0.5):
            model(**batch_of(name))
        seen.append(looker.seen)
    for one, two in zip(*seen, strict=True):
        torch.testing.assert_close(one.need("attention"), two.need("attention"))
        torch.testing.assert_close(one.need("keys"), two.need("keys"))


@families
def test_images_are_told_apart(name: str) -> None:
    model = model_of(name)
    prompts = [
        [2, ("image", "a"), 3, ("image", "a"), 1],
        [4],
        [1, ("image", "b"), 2],
        [("image", "b"), 1, ("image", "a"), 2],
    ]
    with torch.no_grad(), foveate.compress(model, "stride", keep=0.5) as run:
        model.generate(**tiny.inputs(name, model, prompts), max_new_tokens=1, do_sample=False)
    assert [len(run.report.of(i)) for i in range(4)] == [2, 0, 1, 2]
    counts = [i.tokens_in + i.structure_in for i in run.report.images]
    size = {s: tiny.image_counts(name, model, s, images=2) for s in "ab"}
    assert counts[:2] == [size["a"]] * 2
    assert counts[2] == tiny.image_counts(name, model, "b", images=1)
    assert counts[3:] == [size["b"], size["a"]]


@families
def test_positions_are_the_models_own(name: str) -> None:
    model, family = model_of(name), adapt(model_of(name))
    batch = batch_of(name)
    seen: list[Any] = []
    decoder = model.get_decoder()
    decoder = getattr(decoder, "model", decoder)
    handle = decoder.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_embeddings")), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**batch)
            positions = family.positions(dict(batch), 0)
            model(**batch, position_ids=positions)
    finally:
        handle.remove()
    stock, ours = seen
    for a, b in zip(_flat(stock), _flat(ours), strict=True):
        assert torch.equal(a.expand_as(b), b)


@families
def test_positions_on_a_cache_are_the_models_own(name: str) -> None:
    """A later call without a mask; with one, models with three axes of positions fail by themselves."""
    model, family = model_of(name), adapt(model_of(name))
    batch = {k: v for k, v in batch_of(name).items() if k != "attention_mask"}
    later = torch.full((len(batch["input_ids"]), 2), tiny.TEXT)
    with torch.no_grad():
        logits = []
        for ours in (False, True):
            cache = model(**batch, use_cache=True).past_key_values
            call = {"input_ids": later, "past_key_values": cache}
            if ours:
                call["position_ids"] = family.positions(dict(call), cache.get_seq_length())
                assert call["position_ids"].shape[-1] == 2
            logits.append(model(**call).logits)
        whole = torch.ones(len(later), cache.get_seq_length() + 2, dtype=torch.long)
        assert family.positions({**call, "attention_mask": whole}, cache.get_seq_length() - 2).shape[-1] == 2
    assert torch.equal(*logits)


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [torch.view_as_real(value) if value.is_complex() else value]
    return [t for v in value for t in _flat(v)]


@families
def test_smaller_pictures(name: str) -> None:
    family, arguments, output = encoded(name)
    if not family.resizable:
        for ask in (lambda: family.shrunk(arguments, [(1, 1)]), lambda: family.full_layouts(arguments)):
            with pytest.raises(UnsupportedError, match="one size only"):
                ask()
        return
    layouts = family.full_layouts(arguments)
    assert [one.n for one in layouts] == [len(r) for r in family.rows(output)]
    same = family.core.get_image_features(
        **family.shrunk(arguments, [one.grids[0] for one in layouts]), return_dict=True
    )
    assert torch.equal(torch.cat(family.rows(same)), torch.cat(family.rows(output)))
    sizes = [(max(1, h // 2), max(1, w // 2)) for h, w in (one.grids[0] for one in layouts)]
    smaller = family.core.get_image_features(**family.shrunk(arguments, sizes), return_dict=True)
    assert [len(r) for r in family.rows(smaller)] == [h * w for h, w in sizes]


# -- relatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "size", "tokens"), [(1, (40, 40), 16 + 20), (2, (32, 32), 46), (1, (10, 40), 34)])
def test_grid_over_the_limit_is_interpolated(most: int, size: tuple[int, int], tokens: int) -> None:
    family = adapt(model_of("llava_onevision"))
    arguments = {
        "pixel_values": torch.randn(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "image_sizes": torch.tensor([size]),
        "vision_aspect_ratio": f"anyres_max_{most}",
    }
    (layout,) = family.layouts(arguments, None)
    assert layout.n == tokens
    fed_by(family, arguments)


@pytest.mark.parametrize(
    ("size", "tokens", "newlines"), [((768, 1024), 4725, 54), ((3000, 4000), 7309, 70), ((2300, 375), 5265, 162)]
)
def test_published_tiles_of_llava_onevision(size: tuple[int, int], tokens: int, newlines: int) -> None:
    """The table in docs/serving.md: a tower of 384 px with patches of 14, and its 36 grids of tiles."""
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, **narrow},
        text_config={"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 64, **narrow},
    )
    with torch.device("meta"):
        family = adapt(transformers.LlavaOnevisionForConditionalGeneration._from_config(config))
    (layout,) = family.layouts({"image_sizes": torch.tensor([size])}, None)
    assert (layout.n, layout.n - len(content_of(layout))) == (tokens, newlines)


def test_a_picture_that_is_interpolated_changes_nothing_for_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, there is no row before the connector for each of its tokens; the other picture has them all the same."""
    model = model_of("llava_onevision")
    monkeypatch.setattr(model.config, "vision_aspect_ratio", "anyres_max_1")
    sizes = [(40, 40), (10, 40)]  # the first is scaled down to 36 tokens, the other has its 34
    pixels = torch.randn(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    prompts = [[1, *[tiny.IMAGE] * n, tiny.TEXT] for n in (36, 34)]
    ids = torch.tensor([prompts[0], [tiny.PAD] * 2 + prompts[1]])
    with torch.no_grad(), foveate.compress(model, "visionzip:keep=20,contextual=0.5"):
        together = model(
            input_ids=ids,
            attention_mask=(ids != tiny.PAD).long(),
            pixel_values=pixels,
            image_sizes=torch.tensor(sizes),
            batch_num_images=torch.tensor([1, 1]),
        )
        alone = model(input_ids=ids[1:, 2:], pixel_values=pixels[1:, :3], image_sizes=torch.tensor(sizes[1:]))
    torch.testing.assert_close(together.logits[1, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-4)


def relative(vision: dict, **top):
    """A LLaVA with another tower."""
    config = transformers.LlavaConfig(
        text_config=tiny._text("llama"), vision_config=vision, image_token_index=tiny.IMAGE, **top
    )
    model = transformers.LlavaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    tiny._randomise(model, 0)
    return model


def test_llava_with_a_pixtral_tower() -> None:
    model = relative(tiny._vision("pixtral", 64), vision_feature_layer=-1, vision_feature_select_strategy="full")
    family = adapt(model)
    arguments = {"pixel_values": torch.randn(2, 3, 40, 48), "image_sizes": torch.tensor([[40, 48], [20, 32]])}
    fed_by(family, arguments)
    assert [one.grids for one in family.full_layouts(arguments)] == [((10, 12),), ((5, 8),)]
    sizes = [(6, 7), (5, 8)]
    smaller = family.core.get_image_features(**family.shrunk(arguments, sizes), return_dict=True)
    assert [len(r) for r in family.rows(smaller)] == [42, 40]


def test_llava_that_passes_its_cls_token_on() -> None:
    model = relative(tiny._vision("clip_vision_model", 24), vision_feature_select_strategy="full")
    family = adapt(model)
    fed_by(family, {"pixel_values": torch.randn(2, 3, 24, 24)})
    ids = torch.tensor([[1, *[tiny.IMAGE] * 37, tiny.TEXT]])
    with torch.no_grad(), foveate.compress(model, "visionzip", keep=18) as run:
        model(input_ids=ids, pixel_values=torch.randn(1, 3, 24, 24))
    (image,) = run.report.images
    assert (image.tokens_in, image.tokens_out, image.structure_in, image.structure_out) == (36, 18, 1, 1)
    with pytest.raises(UnsupportedError, match="CLS"):
        foveate.compress(model, "resize", keep=0.5)


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v"])
def test_relatives_with_experts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same towers in front of a mixture of experts."""
    base = tiny._FAMILIES[name]
    experts = {"num_experts": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    text = base.text | experts | {"model_type": f"{name}_moe_text", "moe_intermediate_size": 32}
    vision = base.vision | {"model_type": f"{name}_moe_vision"}
    cls = base.cls.replace("ForConditional", "MoeForConditional")
    monkeypatch.setitem(tiny._FAMILIES, name, replace(base, cls=cls, text=text, vision=vision))
    model = tiny.build(name)
    assert model.config.model_type == f"{name}_moe"
    assert type(adapt(model)) is type(adapt(model_of(name)))
    fed_by(adapt(model), adapt(model).encoder_arguments(batch_of(name)))
    looker = Looker(seen=[])
    with torch.no_grad(), foveate.compress(model, looker, keep=0.5) as run:
        model.generate(**batch_of(name), max_new_tokens=2, do_sample=False)
    assert [len(run.report.of(i)) for i in range(3)] == IMAGES


def test_video_placeholders_of_glm4v_are_no_images() -> None:
    family = adapt(model_of("glm4v"))
    ids = torch.tensor([[5, tiny.IMAGE, tiny.IMAGE, 6, tiny.IMAGE]])
    assert family.placeholders(ids, {}).sum() == 3
    types = torch.tensor([[0, 1, 1, 0, 2]])
    assert family.placeholders(ids, {"mm_token_type_ids": types}).tolist() == [[False, True, True, False, False]]


def test_a_tower_that_disagrees_with_its_layouts_is_refused() -> None:
    family, arguments, output = encoded("llava")
    layouts = family.layouts(arguments, output)
    with pytest.raises(UnsupportedError, match="the tower has 35 tokens"):
        family.per_unit([torch.zeros(1, 35, 2)], layouts[:1], arguments)


def test_every_adapter_has_a_name_and_a_note() -> None:
    from foveate.families import known

    assert {"llava", "qwen2_vl", "internvl", "llama4"} <= set(known())
    assert all(cls.note and cls.name for cls in known().values())
