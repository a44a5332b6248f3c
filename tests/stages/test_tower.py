"""Reduction in the tower: one tower by hand, what is refused, and what is read on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import reference as ref
import torch
from reference import IMAGE_A, IMAGE_B, MIXED, batch_of, generated, logits_of, model_of
from torch.utils.flop_counter import FlopCounterMode

import foveate
import tiny
from foveate.errors import MethodError, UnsupportedError
from foveate.families import adapt
from foveate.method import Card, Method, ScoreMethod, TowerMethod
from foveate.parts.merge import bipartite
from foveate.parts.select import top
from foveate.stages import encoder
from foveate.stages.alive import Alive, joined
from foveate.tokens import Reduction, View

TWO = [[3, IMAGE_A, 4], [2, IMAGE_B, 5]]


def features(model, batch) -> torch.Tensor:
    return ref.rows_of(ref.encode(model, batch)[0].pooler_output)


# -- ToMe through a CLIP tower, written out ------------------------------------------------------------------------------


def merged_by_hand(model, pixels: torch.Tensor, k: int, proportional: bool):
    """(k, d) features of one picture after the connector, the tokens they stand at, sizes, and the last CLS row."""
    tower = model.model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixels[None]))
    layers, heads = list(tower.encoder.layers)[:-1], model.config.vision_config.num_attention_heads
    place, size, keys = torch.arange(x.shape[1] - 1), torch.ones(x.shape[1] - 1), torch.empty(0)
    for i, layer in enumerate(layers):
        if i:
            r = -(-(len(place) - k) // (len(layers) - i))
            step = bipartite(keys, r, size)
            x = torch.cat([x[:, :1], step.apply(x[0, 1:])[None]], 1)
            place, size = place[step.anchor], step.sizes(size)
        bias = torch.cat([torch.zeros(1), size.log()]) if proportional else torch.zeros(len(size) + 1)
        normed = layer.layer_norm1(x)
        q, kk = (
            proj(normed).view(1, -1, heads, 16).transpose(1, 2)
            for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        keys = kk[0].mean(0)[1:]
        row = (q[:, :, :1] @ kk.mT * 16**-0.5 + bias).softmax(-1)[0, :, 0, 1:]
        x = layer(x, bias[None, None, None].expand(1, 1, x.shape[1], -1))
    return model.model.multi_modal_projector(x[:, 1:])[0], place, size, row.mean(0)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("k", [12, 17, 30])
def test_merging_by_hand(k, proportional, attn):
    model, batch = model_of("llava", attn), batch_of("llava", TWO)
    expected = []
    with torch.no_grad():
        for pixels in batch["pixel_values"]:
            expected.append(merged_by_hand(model, pixels, k, proportional))
    plan = [f"tome_tower:keep={k},proportional={proportional}", "fastervlm:keep=4"]
    for steps in (1, 2):
        with foveate.compress(model, plan[:steps]) as run:
            ours = features(model, batch)
            logits_of(model, batch)
        rows = ours.split(36)
        for image, mine, (theirs, place, size, row) in zip(run.report.images, rows, expected, strict=True):
            assert torch.equal(image.tower[-1][1], place)
            torch.testing.assert_close(mine[place], theirs, atol=1e-4, rtol=0)
            assert image.stages[0][1:] == (k, k)
            if steps == 1:
                assert torch.equal(image.kept, place)
                torch.testing.assert_close(image.reduction.sizes(torch.ones(36)), size)
            else:
                assert torch.equal(image.kept, place[top(row, 4)]), "attention read after the tower was reduced"


def test_blocks_run_on_fewer_tokens():
    """Time falls because work does: counted in the blocks themselves."""
    model, batch = model_of("llava"), batch_of("llava", TWO)
    widths: dict[int, list[int]] = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda m, args, i=i: widths.setdefault(i, []).append(args[0].shape[1]))
        for i, layer in enumerate(model.model.vision_tower.encoder.layers)
    ]
    counted = {}
    for plan in (None, "tome_tower:keep=6", "onevision_encoder:keep=6", "flowcut:keep=6"):
        widths.clear()
        run = foveate.compress(model, plan) if plan else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features(model, batch)
        counted[plan] = counter.get_total_flops()
        seen = [widths[i][0] for i in range(4)]
        if run:
            assert seen[2:] == [7, 7], "the last block that counts, and the one after it"
            run.remove()
        else:
            assert seen == [37] * 4
        assert seen[1] == {None: 37, "tome_tower:keep=6": 22, "onevision_encoder:keep=6": 7}.get(plan, seen[1])
    for hook in hooks:
        hook.remove()
    assert counted["onevision_encoder:keep=6"] < 0.4 * counted[None]
    assert counted["tome_tower:keep=6"] < 0.7 * counted[None]


def test_pictures_that_keep_different_numbers():
    """Dead slots of shorter rows are hidden: a batch of unequal pictures is each of them alone."""

    @dataclass(frozen=True)
    class Uneven(ScoreMethod, TowerMethod):
        card = Card(name="uneven", title="probe", stages=("encoder",), count="content", needs=("attention", "keys"))

        def stops(self, depth: int) -> Sequence[int]:
            return (1, depth - 1)

        def score(self, view: View) -> torch.Tensor:
            return view.need("attention").mean(0) + 1e-3 * view.need("keys").sum(1)

        def __call__(self, view: View) -> Reduction:
            n = view.n // 2 + int(view.need("keys").abs().sum() * 100) % (view.n // 2)
            return Reduction.drop(top(self.score(view), n), view.n)

    for name in ("llava", "gemma3", "internvl", "llama4", "llava_next", "smolvlm"):
        model, batch = model_of(name), batch_of(name, MIXED[:2])
        with foveate.compress(model, [*foveate.Plan.of(Uneven(), 0.5).steps, "fastervlm:keep=0.7"]) as run:
            together, report = logits_of(model, batch), run.report
            assert len({len(tokens) for image in report.images for _, tokens in image.tower}) > 2
            for i in range(2):
                alone = logits_of(model, batch_of(name, [MIXED[i]], first=i))[0]
                torch.testing.assert_close(together[i, together.shape[1] - len(alone) :], alone, atol=1e-4, rtol=0)
                assert [o.kept.tolist() for o in run.report.images] == [o.kept.tolist() for o in report.of(i)]


# -- what is refused -----------------------------------------------------------------------------------------------------


def refused(name: str, plan, *words: str):
    model = model_of(name)
    before = ref.traces(model)
    with pytest.raises(UnsupportedError) as caught, foveate.compress(model, plan):
        logits_of(model, batch_of(name))
    assert all(word in str(caught.value) for word in (*words, "try: ")), str(caught.value)
    assert ref.traces(model) == before


TILES = ["internvl", "smolvlm", "idefics3", "aya_vision", "llama4", "ovis2"]


@pytest.mark.parametrize("name", TILES)
def test_counts_per_image_where_only_the_prompt_knows_images(name):
    refused(name, "tome_tower:keep=12", "which tiles make one", "a share")


@pytest.mark.parametrize("name", [name for name in tiny.FAMILIES if name not in TILES])
def test_counts_per_image_elsewhere(name):
    model, batch = model_of(name), batch_of(name)
    for keep in (9, "9/image", 10**6):
        with foveate.compress(model, "flowcut", keep=keep) as run:
            logits_of(model, batch)
        for image in run.report.images:
            assert image.tokens_out == min(image.tokens_in, 9 if keep != 10**6 else keep)
            assert image.capped == (keep == 10**6)


def test_budgets_of_a_whole_prompt():
    refused("llava", "tome_tower:keep=20/total", "all pictures of a prompt", "tokens per image")


def test_fewer_tokens_than_tiles():
    refused("llava_next", "flowcut:keep=1", "3 tiles", "larger budget")


def test_two_steps_at_the_same_blocks():
    refused("llava", "flowcut:keep=0.5 > tome_tower:keep=0.5", "before block 1", "still runs")


def test_smaller_pictures_and_the_tower():
    refused("llava", "resize:keep=0.5 > tome_tower:keep=0.5", "smaller picture")


def test_methods_that_do_not_say_where():
    @dataclass(frozen=True)
    class Anywhere(ScoreMethod):
        card = Card(name="anywhere", title="probe", stages=("encoder",))

        def score(self, view: View) -> torch.Tensor:
            return view.x.sum(1)

    refused("llava", foveate.Plan.of(Anywhere(), 0.5), "no TowerMethod", "at=connector")


@dataclass(frozen=True)
class Odd(TowerMethod):
    card = Card(name="odd", title="probe", stages=("encoder",), needs=("keys",))
    at: tuple = (1,)  # type: ignore[assignment]
    answer: object = None

    def stops(self, depth: int) -> Sequence[int]:
        return [depth + s if s < 0 else s for s in self.at]

    def __call__(self, view: View) -> Reduction:
        return self.answer(view)  # type: ignore[operator]


@pytest.mark.parametrize("stops", [(), (2, 1), (1, 1), (0,), (9,)])
def test_stops_that_cannot_be(stops):
    refused("llava", foveate.Plan.of(Odd(stops), 0.5), "odd", "before" if stops == (0,) else "stops are")


@pytest.mark.parametrize(
    "answer",
    [
        lambda view: view.x,
        lambda view: Reduction.drop(torch.arange(view.k - 1), view.n),
        lambda view: Reduction.drop(torch.arange(view.k + 1), view.n),
        lambda view: Reduction.drop(torch.tensor([0, view.n]), view.n),
    ],
    ids=["features", "few", "many", "outside"],
)
def test_answers_that_are_no_reduction(answer):
    model, before = model_of("llava"), ref.traces(model_of("llava"))
    with (
        pytest.raises(MethodError, match=r"odd.*stage encoder, family llava"),
        foveate.compress(model, Odd(answer=answer), keep=0.5),
    ):
        logits_of(model, batch_of("llava", TWO))
    assert ref.traces(model) == before


def test_kernels_without_masks():
    """Flash attention cannot count merged tokens, and cannot hide the dead slots of unequal tiles; the rest works."""
    from transformers import AttentionInterface

    def packed(module, query, key, value, mask=None, **kwargs):
        assert mask is None
        return AttentionInterface()["sdpa"](module, query, key, value, None, is_causal=False)

    AttentionInterface.register("flash_stand_in", packed)
    model, batch = tiny.build("llava"), batch_of("llava", TWO)
    model.config.vision_config._attn_implementation_internal = "flash_stand_in"
    with pytest.raises(UnsupportedError, match=r"needs a mask.*flash_stand_in"):
        foveate.compress(model, "tome_tower", keep=0.5)
    for plan in ("tome_tower:proportional=False,keep=0.5", "onevision_encoder:keep=0.5"):
        with foveate.compress(model, plan):
            ours = logits_of(model, batch)
        with foveate.compress(model_of("llava"), plan):
            torch.testing.assert_close(ours, logits_of(model_of("llava"), batch), atol=1e-4, rtol=0)
    model, batch = tiny.build("llava_next"), batch_of("llava_next")
    model.config.vision_config._attn_implementation_internal = "flash_stand_in"
    with (
        foveate.compress(model, "onevision_encoder", keep=0.3),
        pytest.raises(UnsupportedError, match="different numbers"),
    ):
        logits_of(model, batch)


def test_towers_without_an_adapter(monkeypatch):
    from foveate.families.base import Family

    monkeypatch.setattr("foveate.attach.adapt", Family)
    refused("llava", "tome_tower:keep=0.5", "no adapter", "divprune")


def test_grids_that_are_interpolated():
    """LLaVA-OneVision scales large grids down after the connector: tokens share patches."""
    model = tiny.build("llava_onevision")
    model.config.vision_aspect_ratio = "anyres_max_1"
    model.model.config.vision_aspect_ratio = "anyres_max_1"
    family = adapt(model)
    assert any(
        one.source.shape[1] > 1
        for one in family.tower_layouts({"image_sizes": [[40, 40]], "batch_num_images": torch.tensor([1])}, 5, 16)
    )
    pixels = torch.randn(1, 5, 3, 16, 16)
    with foveate.compress(model, "tome_tower", keep=0.5), pytest.raises(UnsupportedError, match="interpolated"):
        model.model.get_image_features(
            pixel_values=pixels,
            image_sizes=torch.tensor([[40, 40]]),
            batch_num_images=torch.tensor([1]),
            return_dict=True,
        )


def test_tuples_cannot_carry_a_reduction():
    model, batch = model_of("llava"), batch_of("llava", TWO)
    with foveate.compress(model, "tome_tower", keep=0.5), pytest.raises(UnsupportedError, match="tuple"):
        model.model.get_image_features(pixel_values=batch["pixel_values"], return_dict=False)


def test_the_tower_by_itself_is_left_alone():
    model, batch = model_of("llava"), batch_of("llava", TWO)
    with torch.no_grad():
        stock = model.model.vision_tower(batch["pixel_values"]).last_hidden_state
        with foveate.compress(model, "flowcut", keep=0.5):
            assert torch.equal(model.model.vision_tower(batch["pixel_values"]).last_hidden_state, stock)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_videos_are_left_alone(name):
    """Qwen3-VL encodes a video by the function for images."""
    model = model_of(name)
    pixels, grid = torch.randn(48, 3 * 2 * tiny.PATCH**2), torch.tensor([[2, 4, 6]])
    with torch.no_grad():
        stock = ref.rows_of(model.model.get_video_features(pixels, grid, return_dict=True).pooler_output)
        with foveate.compress(model, "tome_tower", keep=0.5):
            ours = ref.rows_of(model.model.get_video_features(pixels, grid, return_dict=True).pooler_output)
    assert torch.equal(ours, stock)


def test_features_of_another_plan_are_not_taken():
    model, batch = model_of("llava"), batch_of("llava", TWO)
    with foveate.compress(model, "tome_tower", keep=0.5):
        output, _, rest = ref.encode(model, batch)
    with foveate.compress(model, "tome_tower", keep=0.25), pytest.raises(UnsupportedError, match="not encoded under"):
        logits_of(model, rest | {"mm_encoder_outputs": {"image": output}})
    with foveate.compress(model, "tome_tower", keep=0.5) as run:
        logits_of(model, rest | {"mm_encoder_outputs": {"image": output}})
    assert run.report.tokens_out == 36


def test_gradients_reach_the_pixels():
    model, batch = model_of("llava"), dict(batch_of("llava", TWO))
    batch["pixel_values"] = batch["pixel_values"].clone().requires_grad_()
    with foveate.compress(model, "tome_tower", keep=0.5):
        model(**batch).logits.sum().backward()
    assert (batch["pixel_values"].grad.abs().sum((1, 2, 3)) > 0).all()
    model.zero_grad()


def test_half_precision():
    model = model_of("llava", dtype=torch.bfloat16)
    batch = batch_of("llava", TWO, torch.bfloat16)
    for plan in ("tome_tower:keep=0.5", "flowcut:keep=0.5", "onevision_encoder:keep=0.5"):
        with foveate.compress(model, plan) as run:
            assert logits_of(model, batch).isfinite().all() and run.report.tokens_out == 36


def test_beams_repeat_what_was_reduced():
    model, batch = model_of("qwen2_5_vl"), batch_of("qwen2_5_vl")
    with foveate.compress(model, "flowcut:keep=0.5 > divprune:keep=0.5"):
        once = generated(model, batch, 1)[1]
        twice = generated(model, batch, 1, num_return_sequences=2, do_sample=True)[1]
        generated(model, batch, 3, num_beams=2)
    torch.testing.assert_close(twice, once.repeat_interleave(2, 0), atol=1e-4, rtol=0)


# -- rows that are left --------------------------------------------------------------------------------------------------


def test_rows_that_are_left():
    """Two rows of four: (0, 2, 3) are left of the first, where 1 went into 2; only 4 of the second."""
    rows, home = torch.tensor([0, 2, 3, 4]), torch.tensor([0, 1, 1, 2, 3, -1, -1, -1])
    alive = Alive(rows, home, [3, 1], 4, torch.tensor([1.0, 2.0, 1.0, 1.0]))
    x = torch.arange(1.0, 9.0).view(2, 4, 1)
    assert alive.ragged and alive.take(x)[..., 0].tolist() == [[1, 3, 4], [5, 5, 5]]
    assert alive.spread(alive.take(x))[..., 0].tolist() == [[1, 3, 3, 4], [5, 0, 0, 0]]
    assert alive.flat(alive.take(x))[:, 0].tolist() == [1, 3, 4, 5]
    assert alive.wide(alive.flat(alive.take(x)))[..., 0].tolist() == [[1, 3, 4], [5, 0, 0]]
    assert alive.places().tolist() == [[0, 2, 3], [0, 0, 0]]
    read = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert alive.back(read, copies=False).tolist() == [pytest.approx([0.1, 0, 0.2, 0.3]), pytest.approx([0.4, 0, 0, 0])]
    assert alive.back(read, copies=True).tolist() == [
        pytest.approx([0.1, 0.2, 0.2, 0.3]),
        pytest.approx([0.4, 0, 0, 0]),
    ]
    bias = alive.bias(x)[:, 0, 0]
    assert bias[0].tolist() == pytest.approx([0, torch.tensor(2.0).log().item(), 0])
    assert bias[1, 0] == 0 and (bias[1, 1:] == torch.finfo(torch.float32).min).all()
    whole = Alive(torch.arange(8), torch.arange(8), [4, 4], 4, None)
    assert not whole.ragged and whole.bias(x) is None and torch.equal(whole.spread(whole.take(x)), x)


def test_reductions_side_by_side():
    one = Reduction.groups(torch.tensor([0, 0, 1]), torch.tensor([1, 2]))
    two = Reduction.drop(torch.tensor([1]), 2)
    both = joined([(torch.tensor([0, 2, 4]), one), (torch.tensor([1, 3]), two)], 5).check()
    assert both.anchor.tolist() == [2, 3, 4]
    assert both.apply(torch.arange(5.0)[:, None])[:, 0].tolist() == [1, 3, 4]
    assert joined([(torch.tensor([1, 3]), two), (torch.tensor([0, 2]), two)], 4).is_drop


# -- attention of an earlier layer ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Early(ScoreMethod):
    """Remembers what it was shown."""

    card = Card(name="looks_early", title="probe", needs=("early", "attention"))
    early: float = 0.5
    seen: list = None  # type: ignore[assignment]

    def score(self, view: View) -> torch.Tensor:
        self.seen.append(view)
        return view.need("early").mean(0)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_early_attention_is_that_of_its_layer(name):
    """Two steps that look at different layers, each gets its own: as a run that looks at one of them alone."""
    model, batch = model_of(name), batch_of(name, TWO)
    shares, found = (0.0, 0.34, 0.99), {}
    for share in shares:
        seen: list[View] = []
        with foveate.compress(model, Early(share, seen), keep=0.5):
            logits_of(model, batch)
        found[share] = seen
        layer = round(share * 3)
        assert all(view.extras["early"].layer == layer for view in seen)
        if layer == adapt(model).score_layer():
            assert torch.equal(seen[0].need("early"), seen[0].need("attention"))
    assert not torch.allclose(found[0.0][0].need("early"), found[0.34][0].need("early"))
    one, two = [], []
    plan = foveate.Plan.of(
        [foveate.Plan.of(Early(0.0, one), 0.9).steps[0], foveate.Plan.of(Early(0.34, two), 0.5).steps[0]]
    )
    with foveate.compress(model, plan) as run:
        logits_of(model, batch)
    torch.testing.assert_close(one[0].need("early"), found[0.0][0].need("early"))
    whole = found[0.34][0].need("early")
    kept = top(one[0].need("early").mean(0), one[0].k)
    torch.testing.assert_close(two[0].need("early"), whole[:, kept])
    assert len(run.report.images) == 2


def test_early_attention_against_the_eager_tower():
    model, batch, seen = model_of("llava", "eager"), batch_of("llava", TWO), []
    with torch.no_grad():
        maps = model.model.vision_tower(batch["pixel_values"], output_attentions=True).attentions
    with foveate.compress(model, Early(0.34, seen), keep=0.5):
        logits_of(model, batch)
    for view, weights in zip(seen, maps[1], strict=True):
        torch.testing.assert_close(view.need("early"), weights[:, 0, 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [None, -0.1, 1.5, True])
def test_early_needs_a_share(share):
    refused("llava", foveate.Plan.of(Early(share, []), 0.5), "early=", "looks_early", "share of the tower's depth")


def test_windows_are_named():
    model, seen = model_of("qwen2_5_vl"), []
    with foveate.compress(model, Early(0.0, seen), keep=0.5):
        logits_of(model, batch_of("qwen2_5_vl", TWO))
    assert "window" in seen[0].extras["early"].domain and "window" not in seen[0].extras["attention"].domain


def test_early_attention_adds_up_where_tokens_merge():
    seen: list[View] = []
    model, batch = model_of("llava"), batch_of("llava", TWO)
    alone: list[View] = []
    with foveate.compress(model, Early(0.0, alone), keep=0.5):
        logits_of(model, batch)
    with foveate.compress(model, ["tome:keep=0.5", foveate.Plan.of(Early(0.0, seen), 0.5).steps[0]]):
        logits_of(model, batch)
    torch.testing.assert_close(seen[0].need("early").sum(1), alone[0].need("early").sum(1))
    # read in the first block, before the tower merges: the same sums
    with foveate.compress(model, ["tome_tower:keep=0.5", foveate.Plan.of(Early(0.0, seen), 0.5).steps[0]]):
        logits_of(model, batch)
    torch.testing.assert_close(seen[-2].need("early").sum(1), alone[0].need("early").sum(1))
    assert seen[-2].size.sum() == 36


def test_what_is_wanted_is_compared():
    one, two = (encoder.Wanted.by(foveate.Plan.of(Early(share, []), 0.5)) for share in (0.1, 0.2))
    assert not one.serves(two) and one.serves(one)
    inside = encoder.Wanted.by(foveate.Plan.of("tome_tower:keep=0.5 > fastervlm:keep=0.5"))
    assert inside.needs == {"attention"} and not inside.serves(encoder.Wanted.by(foveate.Plan.of("fastervlm", 0.5)))


@dataclass(frozen=True)
class Wants(Method):
    card = Card(name="wants", title="probe", needs=("values", "value_attention"))
    seen: list = None  # type: ignore[assignment]

    def __call__(self, view: View) -> Reduction:
        self.seen.append(view)
        return Reduction.drop(torch.arange(view.k), view.n)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_values_at_the_connector(name):
    """Value vectors are read like keys; attention between them is that of the picture alone."""
    model, batch, seen = model_of(name), batch_of(name, TWO), []
    with foveate.compress(model, Wants(seen), keep=0.5):
        logits_of(model, batch)
        for i in range(2):
            logits_of(model, batch_of(name, [TWO[i]], first=i))
    assert len(seen) == 4
    for together, alone in zip(seen[:2], seen[2:], strict=True):
        for need in ("values", "value_attention"):
            torch.testing.assert_close(together.need(need), alone.need(need), atol=1e-5, rtol=0)
    assert seen[0].need("value_attention").shape == (4, seen[0].n) and len(seen[0].need("values")) == seen[0].n
