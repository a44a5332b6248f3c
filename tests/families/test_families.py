"""What each adapter says of its family, checked on a small random instance of the real class.

Which patches feed a token is not believed but measured: by the gradient of the token's feature with respect to the
output of the tower's last block that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

import foveate
import tiny
from foveate.errors import UnsupportedError
from foveate.families import adapt
from foveate.method import Card, Method
from foveate.stages.tap import tap
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


@families
def test_source_patches_are_those_that_feed_a_token(name: str) -> None:
    family, arguments, _ = encoded(name)
    last = -2 if getattr(family.config, "vision_feature_layer", -1) == -2 else -1
    seen: list[torch.Tensor] = []

    def note(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = family.blocks()[last].register_forward_hook(note)
    try:
        with torch.enable_grad():
            output = family.core.get_image_features(**arguments, return_dict=True)
    finally:
        handle.remove()
    layouts = family.layouts(arguments, output)
    features = torch.cat(family.rows(output))
    row, start = family.cls_row(), 0
    for u, layout in enumerate(layouts):
        for i in torch.linspace(0, layout.n - 1, 7).long().tolist():
            if layout.kind[i] != Kind.CONTENT:
                continue
            grad = torch.autograd.grad(features[start + i].sum(), seen[0], retain_graph=True)[0].abs().sum(-1)
            grad = grad.reshape(-1, grad.shape[-1])  # (rows of the tower's batch, tokens)
            if row is not None:
                keep = torch.arange(grad.shape[1]) != row % grad.shape[1]
                grad = grad[:, keep]
            per_unit = family.per_unit([grad[..., None]], layouts, arguments)
            for v, value in enumerate(per_unit):
                fed = set((value[:, 0] > 0).nonzero()[:, 0].tolist())
                expected = set(layout.source[i].tolist()) - {-1} if u == v else set()
                assert fed == expected, f"token {i} of unit {u}, patches of unit {v}"
        start += layout.n


@families
def test_extras_are_the_towers_own_attention(name: str) -> None:
    """Against a full softmax map of the queries and keys that the module really used."""
    model, family = model_of(name), adapt(model_of(name))
    seen: list[tuple] = []

    def read(module, query, key, mask, kwargs):
        seen.append((query, key, mask, kwargs.get("scaling") or query.shape[-1] ** -0.5))

    undo = tap(family.score_attention(), read)
    with torch.no_grad():
        output = family.core.get_image_features(**family.encoder_arguments(batch_of(name)), return_dict=True)
    undo()
    layouts = family.layouts(family.encoder_arguments(batch_of(name)), output)
    row, attention, keys = family.cls_row(), [], []
    for query, key, mask, scale in seen:
        logits = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).mT * scale
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        full = logits.softmax(-1)
        if row is not None:
            one = full[:, :, row]
        else:
            sees = torch.ones_like(full) if mask is None else (full > 0).float()
            one = full.sum(2) / sees.sum(2)
        keep = torch.ones(one.shape[-1], dtype=torch.bool)
        if row is not None:
            keep[row] = False
        attention.append(one.mT[:, keep])
        keys.append(key.mean(1)[:, keep])
    arguments = family.encoder_arguments(batch_of(name))
    expected = family.per_unit(attention, layouts, arguments), family.per_unit(keys, layouts, arguments)
    looker = Looker(seen=[])
    with torch.no_grad(), foveate.compress(model, looker, keep=0.5) as run:
        model.generate(**batch_of(name), max_new_tokens=1, do_sample=False)
    assert [len(run.report.of(i)) for i in range(3)] == IMAGES
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


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [torch.view_as_real(value) if value.is_complex() else value]
    return [t for v in value for t in _flat(v)]


@families
def test_smaller_pictures(name: str) -> None:
    family, arguments, output = encoded(name)
    if not family.resizable:
        with pytest.raises(UnsupportedError, match="one size only"):
            family.shrunk(arguments, [(1, 1)])
        return
    layouts = family.full_layouts(arguments)
    assert [one.n for one in layouts] == [len(r) for r in family.rows(output)]
    same = family.core.get_image_features(
        **family.shrunk(arguments, [one.grids[0] for one in layouts]), return_dict=True
    )
    torch.testing.assert_close(torch.cat(family.rows(same)), torch.cat(family.rows(output)), atol=1e-4, rtol=0)
    sizes = [(max(1, h // 2), max(1, w // 2)) for h, w in (one.grids[0] for one in layouts)]
    smaller = family.core.get_image_features(**family.shrunk(arguments, sizes), return_dict=True)
    assert [len(r) for r in family.rows(smaller)] == [h * w for h, w in sizes]


def test_every_adapter_has_a_name_and_a_note() -> None:
    from foveate.families import known

    assert {"llava", "qwen2_vl", "internvl", "llama4"} <= set(known())
    assert all(cls.note and cls.name for cls in known().values())
