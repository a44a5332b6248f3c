"""What attaching promises on every family, whatever the method: probes of each kind against the stock model.

Reduced to its features and its columns, a compressed call is a call of the stock model; each test finds that call.
"""

from __future__ import annotations

import copy

import pytest
import reference as ref
import torch
from probes import DROPS, MERGES, PROBES, BrokenError, Drop, Guided, Identity, Raises
from reference import IMAGE_A, IMAGE_B, MIXED, STEPS, batch_of, generated, logits_of, model_of

import foveate
import tiny
from foveate import registry
from foveate.errors import UnsupportedError

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)


def every(probes: dict):
    return pytest.mark.parametrize("probe", probes.values(), ids=probes)


# -- nothing to do ---------------------------------------------------------------------------------------------------


@every_family
@every(PROBES | {"identity": Identity()})
def test_keeping_all_changes_no_bit(name, probe):
    """keep=1.0; and a reduction that keeps all although it may not, which goes through the whole path."""
    model, batch = model_of(name), batch_of(name)
    logits, sequences, steps = ref.stock(name)
    with foveate.compress(model, probe, keep=0.5 if isinstance(probe, Identity) else 1.0) as run:
        assert torch.equal(logits_of(model, batch), logits)
        again, again_steps = generated(model, batch)
    assert run.report.tokens_in == run.report.tokens_out > 0
    assert torch.equal(again, sequences)
    assert torch.equal(again_steps, steps)


@every_family
def test_prompt_without_images_is_left_alone(name):
    model, batch = model_of(name), batch_of(name, [[6], [9]])
    logits, (sequences, steps) = logits_of(model, batch), generated(model, batch, 3)
    with foveate.compress(model, Drop(), keep=0.25) as run:
        assert torch.equal(logits_of(model, batch), logits)
        again, again_steps = generated(model, batch, 3)
    assert torch.equal(again, sequences) and torch.equal(again_steps, steps)
    assert run.report is None


# -- the same as the stock model -------------------------------------------------------------------------------------


@every_family
@every(DROPS)
def test_drops_are_masked_columns(name, probe):
    """Original positions: prompt logits, then greedy decoding, in a padded batch."""
    model, batch = model_of(name), batch_of(name)
    where = ref.places(name, MIXED, batch)
    with foveate.compress(model, probe, keep=0.5) as run:
        ours = logits_of(model, batch)
        keep = ref.kept(where, run.report, batch)
        assert ours.shape[1] == keep.sum(1).max() < batch["input_ids"].shape[1]
        sequences, steps = generated(model, batch)
        assert torch.equal(keep, ref.kept(where, run.report, batch)), "the same choice in forward and generate"
    assert run.report.tokens_out < run.report.tokens_in
    hidden = batch | {"attention_mask": keep.long()}
    ref.same_rows(ours, logits_of(model, hidden | {"position_ids": ref.positions_of(model, batch)}), keep)
    expected, expected_steps = generated(model, hidden | {"position_ids": ref.generation_positions(model, batch)})
    torch.testing.assert_close(steps, expected_steps, atol=1e-4, rtol=0)
    assert torch.equal(sequences[:, -STEPS:], expected[:, -STEPS:])
    assert torch.equal(sequences[:, :-STEPS], batch["input_ids"]), "generate still returns the prompt"


@every_family
@every({"drop": PROBES["drop"]} | MERGES)
def test_short_prompt(name, probe):
    """Both numberings: the stock model on a prompt written without the dropped tokens, fed the reduced features."""
    model, batch = model_of(name), batch_of(name)
    where = ref.places(name, MIXED, batch)
    with foveate.compress(model, probe, keep=0.5) as run:
        ours, (_, steps) = logits_of(model, batch), generated(model, batch, 4)
        report, keep = run.report, ref.kept(where, run.report, batch)
    assert report.tokens_out < report.tokens_in
    by_hand = ref.short(model, batch, keep, report, ref.positions_of(model, batch))
    ref.same_rows(ours, _whole(logits_of(model, by_hand), keep), keep)
    by_hand = ref.short(model, batch, keep, report, ref.generation_positions(model, batch))
    torch.testing.assert_close(steps, generated(model, by_hand, 4)[1], atol=1e-4, rtol=0)

    with foveate.compress(model, probe, keep=0.5, positions="contiguous") as run:
        steps = generated(model, batch)[1]
        assert torch.equal(keep, ref.kept(where, run.report, batch))
    by_hand = ref.short(model, batch, keep, report, None)
    torch.testing.assert_close(steps, generated(model, by_hand)[1], atol=1e-4, rtol=0)


def _whole(short: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Logits of left-padded short rows, spread over the columns they stand for."""
    spread = short.new_zeros(*keep.shape, short.shape[-1])
    for row, k in enumerate(keep):
        spread[row][k] = short[row, short.shape[1] - int(k.sum()) :]
    return spread


@every_family
@every(PROBES)
def test_batch_is_its_rows(name, probe):
    """A padded batch keeps what its prompts keep alone, several images and none included, and says the same."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, probe, keep=0.5) as run:
        together, report = logits_of(model, batch), run.report
        for i, prompt in enumerate(MIXED):
            alone = logits_of(model, row := batch_of(name, [prompt], first=i))[0]
            torch.testing.assert_close(together[i, together.shape[1] - len(alone) :], alone, atol=1e-4, rtol=0)
            mine = run.report.images if any(s in prompt for s in (IMAGE_A, IMAGE_B)) else ()
            assert len(mine) == len(report.of(i))
            for one, other in zip(mine, report.of(i), strict=True):
                assert torch.equal(one.kept, other.kept) and one.sample == 0 and other.sample == i
    text = ref.stock(name)[0][2, -row["input_ids"].shape[1] :]
    torch.testing.assert_close(together[2, -len(text) :], text, atol=1e-5, rtol=0)


# -- taken off -------------------------------------------------------------------------------------------------------


def test_what_would_be_left():
    """The check itself: an attached run leaves traces, each kind of them."""
    model = model_of("llava")
    before = ref.traces(model)
    with foveate.compress(model, DROPS["tower"], keep=0.5):
        now = dict(enumerate(ref.traces(model)))
        changed = [i for i, entry in now.items() if entry != before[i]]
    assert len(changed) == 3, "the model's hooks, the core's attribute, the tapped attention's config"
    assert ref.traces(model) == before


@every_family
@pytest.mark.parametrize("where", ["nowhere", "method", "hook", "generate"])
def test_removing_restores(name, where):
    model, batch = model_of(name), batch_of(name)
    logits = ref.stock(name)[0]  # first calls leave marks of the library's own
    before = ref.traces(model)

    def fail(*_):
        raise BrokenError(f"inside {where}")

    plan = [Raises()] if where == "method" else [DROPS["tower"]]
    hook = model.get_decoder().register_forward_hook(fail) if where == "hook" else None
    try:
        with foveate.compress(model, plan, keep=0.5) as run:
            if where == "nowhere":
                generated(model, batch, 2)
            elif where == "generate":
                with pytest.raises(BrokenError):
                    generated(model, batch, 2, logits_processor=[fail])
            else:
                for call in (logits_of, generated):
                    with pytest.raises(BrokenError):
                        call(model, batch)
    finally:
        if hook:
            hook.remove()
    assert not run.active
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits)


# -- ways of generating ----------------------------------------------------------------------------------------------

# What the stock model cannot do; the same calls work while a run is attached, and are compared with single ones.
STOCK_FAILS = {
    # Features stay in last_hidden_state, but generate repeats pooler_output only: more placeholders than features.
    "llama4": "Image features and image tokens do not match",
}
# Stock generate repeats the pictures of a prompt as A A B B, which is another order than that of the repeated prompts.
STOCK_MIXES_UP = ["glm4v"]
WAYS = {
    "sampling": {"do_sample": True, "top_k": 0},
    "beams": {"num_beams": 2},
    "returns": {"do_sample": True, "num_return_sequences": 2},
}


@every_family
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_generating(name, way):
    prompts = [[3, IMAGE_A, 4], [2, IMAGE_B, 5], [6]] if name in STOCK_MIXES_UP else MIXED
    model, batch = model_of(name), batch_of(name, prompts)

    def go(batch):
        torch.manual_seed(3)
        return generated(model, batch, 4, **WAYS[way])

    with foveate.compress(model, Drop(), keep=0.5) as run:
        sequences, steps = go(batch)
        keep = ref.kept(ref.places(name, prompts, batch), run.report, batch)
    assert len(sequences) == (6 if way == "returns" else 3)
    hidden = batch | {"attention_mask": keep.long(), "position_ids": ref.generation_positions(model, batch)}
    if name in STOCK_FAILS and way != "sampling":
        with pytest.raises(ValueError, match=STOCK_FAILS[name]):
            go(hidden)
        return
    expected, expected_steps = go(hidden)
    agree = sequences == expected
    if way == "beams":
        assert agree.all()
        return
    assert agree.float().mean() > 0.9  # a draw may fall between two nearly equal sums
    same = agree.cumprod(1)[:, -5:-1].bool()  # what was said before is the same
    torch.testing.assert_close(steps[same], expected_steps[same], atol=1e-4, rtol=0)


@every_family
@every(PROBES)
def test_repeated_prompts_share_their_pictures(name, probe):
    """Several returns: each row begins as the prompt does alone, whatever order its pictures were repeated in."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, probe, keep=0.5) as run:
        _, once = generated(model, batch, 1)
        _, twice = generated(model, batch, 1, do_sample=True, num_return_sequences=2)
        assert [i.sample for i in run.report.images] == [0, 1, 1]
    torch.testing.assert_close(twice, once.repeat_interleave(2, 0), atol=1e-4, rtol=0)


@every_family
@pytest.mark.parametrize("probe", [Drop(), Guided()], ids=["drop", "guided"])
@pytest.mark.parametrize("way", ["lookup", "other", "same"])
def test_assisted_decoding_is_greedy_decoding(name, way, probe):
    """Drafts come with the prompt in its first call; they must not become part of the question either."""
    model, batch = model_of(name), batch_of(name, [MIXED[1]], first=1)
    batch["input_ids"][:, -4:-2] = batch["input_ids"][:, -2:]  # something to look up
    with foveate.compress(model, probe, keep=0.5) as run:
        expected = generated(model, batch)[0]
        kept = [image.kept for image in run.report.images]
        helper = {"same": model, "other": model_of(name, seed=1)}.get(way)
        more = {"prompt_lookup_num_tokens": 3} if helper is None else {"assistant_model": helper}
        assert torch.equal(model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **more), expected)
        for one, other in zip(run.report.images, kept, strict=True):
            assert torch.equal(one.kept, other)


# -- conversations ---------------------------------------------------------------------------------------------------


def _second_turn(name: str, first: torch.Tensor, batch: dict, prompts: list[list]) -> tuple[dict, dict]:
    """The conversation so far and a new turn: what generate gets besides the cache, and the new turn alone."""
    new = batch_of(name, prompts, seed=5)
    ids = torch.cat([first, new["input_ids"]], 1)
    fresh = first.shape[1] - batch["input_ids"].shape[1]
    answered = torch.cat([batch["attention_mask"], batch["attention_mask"].new_ones(len(first), fresh)], 1)
    whole = {"input_ids": ids, "attention_mask": torch.cat([answered, new["attention_mask"]], 1)}
    for key in ref.ALIGNED:
        if key in batch:
            middle = batch[key].new_zeros(len(first), fresh)
            whole[key] = torch.cat([batch[key], middle, new[key]], 1)
    return whole, new


def _pictures(batch: dict) -> dict:
    aligned = ("input_ids", "attention_mask", *ref.ALIGNED)
    return {k: v for k, v in batch.items() if k not in aligned}


@every_family
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("prompts", [MIXED, MIXED[:1]], ids=["padded", "single"])
def test_second_turn_in_text(name, prompts, positions):
    """generate on the returned cache says what the recomputed conversation says."""
    if name == "paligemma":
        pytest.skip(NO_SECOND_IMAGE[name])
    model, batch = model_of(name), batch_of(name, prompts)
    with foveate.compress(model, Drop(), keep=0.5, positions=positions):
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        turn, _ = _second_turn(name, out.sequences, batch, [[4]] * len(prompts))
        _, ours = generated(model, turn, 3, past_key_values=out.past_key_values)
        _, again = generated(model, turn | _pictures(batch), 3)
    torch.testing.assert_close(ours, again, atol=1e-4, rtol=0)


NO_SECOND_IMAGE = {"paligemma": "its prompt is read in both directions: a cached prompt has not seen the second turn"}
if ref.BEFORE_5_23:
    NO_SECOND_IMAGE["gemma3"] = "stock reads the token types of a second turn as if the prompt began with them"


@every_family
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_second_turn_with_an_image(name, positions):
    if name in NO_SECOND_IMAGE:
        pytest.skip(NO_SECOND_IMAGE[name])
    model, batch = model_of(name), batch_of(name, MIXED[:1])
    with foveate.compress(model, Drop(), keep=0.5, positions=positions) as run:
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        turn, new = _second_turn(name, out.sequences, batch, [[2, IMAGE_B, 3]])
        everything = turn | _together(_pictures(batch), _pictures(new))
        # By itself generate would look for all pictures of the conversation to number a new one.
        numbered = turn | _pictures(new) | {"position_ids": ref.generation_positions(model, everything)}
        _, ours = generated(model, numbered, 3, past_key_values=out.past_key_values)
        (image,) = run.report.images
        assert image.tokens_in + image.structure_in == tiny.image_counts(name, model, "b")
        _, again = generated(model, everything, 3)
        assert len(run.report.images) == 2
    torch.testing.assert_close(ours, again, atol=1e-4, rtol=0)


def _together(one: dict, other: dict) -> dict:
    """The pictures of two turns in one call."""
    both = {}
    for key, x in one.items():
        y = other[key]
        if "pixel_attention_mask" in one:  # all tiles of a sample in one row
            both[key] = torch.cat([x, y], 1)
            continue
        if x.ndim == 4:  # pictures of their own size, padded
            high, wide = (max(x.shape[d], y.shape[d]) for d in (2, 3))
            x, y = (torch.nn.functional.pad(z, (0, wide - z.shape[3], 0, high - z.shape[2])) for z in (x, y))
        both[key] = torch.cat([x, y])
    return both


# -- training --------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_loss_and_gradients(name, padding, cached):
    """As with the dropped columns masked, where the label right after a dropped token is ignored in both."""
    model, batch = copy.deepcopy(model_of(name)), batch_of(name, padding=padding)
    ids, valid = batch["input_ids"], batch["attention_mask"].bool()
    labels = ids.masked_fill(~valid, -100)
    labels[:, 1:].masked_fill_(~valid[:, :-1], -100)  # nothing is predicted from padding

    def step(**more):
        model.zero_grad()
        loss = model(**more, use_cache=cached).loss
        loss.backward()
        return loss.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    with foveate.compress(model, Drop(), keep=0.5) as run:
        loss, gradients = step(**batch, labels=labels)
        keep = ref.kept(ref.places(name, MIXED, batch), run.report, batch)
    orphan = torch.nn.functional.pad((valid & ~keep)[:, :-1], (1, 0))
    assert (labels[orphan] != -100).any(), "some label does follow a dropped token"
    masked = {"attention_mask": keep.long(), "position_ids": ref.positions_of(model, batch)}
    expected, theirs = step(**batch | masked, labels=labels.masked_fill(orphan | ~keep, -100))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert gradients.keys() == theirs.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[key], atol=1e-4, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    parts = [k for k, g in gradients.items() if g.abs().max() > 0]
    assert any("vision" in k or "visual" in k for k in parts) and any("layers" in k for k in parts)


# -- other ways to call ----------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("kind", ["right", "eager", "bfloat16", "tuple", "no mask", "no cache"])
def test_ways_of_calling(name, kind):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = model_of(name, "eager" if kind == "eager" else "sdpa", dtype=dtype)
    prompts = MIXED[1:2] if kind in ("no mask", "no cache") else MIXED
    right = kind == "right"
    batch = batch_of(name, prompts, dtype, padding="right" if right else "left")
    if kind in ("no mask", "no cache"):
        del batch["attention_mask"]
    more = {"tuple": {"return_dict": False}, "no cache": {"use_cache": False}}.get(kind, {})
    with foveate.compress(model, Drop(), keep=0.5) as run, torch.no_grad():
        ours = model(**batch, **more)
        ours = next(x for x in ours if isinstance(x, torch.Tensor)) if kind == "tuple" else ours.logits
        report, keep = run.report, ref.kept(ref.places(name, prompts, batch), run.report, batch)
    by_hand = ref.short(model, batch, keep, report, ref.positions_of(model, batch), right)
    n = keep.sum(1).max()
    atol = 0.1 if kind == "bfloat16" else 1e-4
    for row, k in enumerate(keep.sum(1)):
        alive = slice(0, k) if right else slice(n - k, n)
        theirs = logits_of(model, by_hand)[row, alive]
        torch.testing.assert_close(ours[row, alive], theirs, atol=atol, rtol=0)


# -- every method on every family ------------------------------------------------------------------------------------


RESIZABLE = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "mistral3", "glm4v")


# What the tower does to its own tokens, and what leaves later, is no reduction of the stock features: see test_tower.py
# and test_layers.py.
OUTSIDE = [name for name, cls in registry.classes().items() if {*cls.card.stages} & {"input", "connector"}]


@every_family
@pytest.mark.parametrize("method", OUTSIDE)
def test_method_on_family(name, method):
    """One equality each: the stock model, fed the reduction that the report states."""
    _equal(name, method, 0.5)


@pytest.mark.wide
@every_family
@pytest.mark.parametrize("method", OUTSIDE)
@pytest.mark.parametrize("keep", [0.1, 0.9, "3/image", "11/total"])
def test_method_on_family_at_other_budgets(name, method, keep):
    if method == "resize" and keep == "11/total":
        keep = "11/image"  # the encoder sees pictures one by one
    _equal(name, method, keep)


def _equal(name, method, budget):
    model, prompts = model_of(name), [[3, IMAGE_A, 4, IMAGE_B, 2]]
    batch = batch_of(name, prompts)
    if method == "resize" and name not in RESIZABLE:
        words = rf"{type(model).__name__} .*one size only.*resize.*(.|\n)*try: pool"
        with pytest.raises(UnsupportedError, match=words):
            foveate.compress(model, method, keep=budget)
        return
    with foveate.compress(model, method, keep=budget) as run:
        ours, report, family = logits_of(model, batch), run.report, run.family
    assert report.tokens_out < report.tokens_in
    keep = ref.kept(ref.places(name, prompts, batch), report, batch)
    positions = ref.positions_of(model, batch)
    if all(image.reduction.is_drop for image in report.images):
        hidden = batch | {"attention_mask": keep.long(), "position_ids": positions}
        ref.same_rows(ours, logits_of(model, hidden), keep)
        return
    early = registry.get(method).card.features == "before" and family.rowwise
    source = _early_rows(model, batch, family, report) if early else None
    by_hand = ref.short(model, batch, keep, report, positions, replace=source)
    if method == "resize":
        by_hand["mm_encoder_outputs"] = {"image": _smaller(model, batch, family, report)}
    ref.same_rows(ours, _whole(logits_of(model, by_hand), keep), keep)


def _smaller(model, batch, family, report):
    """The stock encoder on smaller pictures."""
    arguments = family.encoder_arguments(batch)
    sizes = [registry.get("resize")().grid(*image.grids[0], image.stages[0][1]) for image in report.images]
    with torch.no_grad():
        output = model.base_model.get_image_features(**family.shrunk(arguments, sizes), return_dict=True)
    field = "pooler_output" if output.get("pooler_output") is not None else "last_hidden_state"
    if isinstance(output[field], torch.Tensor):
        output[field] = ref.rows_of(output[field])[:, None]
    return output


def _early_rows(model, batch, family, report):
    """For methods that reduce the tower's tokens, before a connector that maps each of them alone."""
    seen = []
    hook = model.base_model.get_submodule(family.rowwise).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    try:
        output, _, _ = ref.encode(model, batch)
    finally:
        hook.remove()
    tower = torch.cat([x.flatten(0, -2) for x in seen])
    starts = [0]
    sources = []
    for layout in family.layouts(batch, output):
        sources.append(torch.where(layout.source >= 0, layout.source + starts[-1], -1)[:, 0])
        starts.append(starts[-1] + layout.patches)
    assert starts[-1] == len(tower)

    def replace(i: int, late: torch.Tensor) -> torch.Tensor:
        image = report.images[i]
        source = sources[i]
        before = tower[source.clamp(min=0)] * (source >= 0)[:, None]
        with torch.no_grad():
            early = model.base_model.get_submodule(family.rowwise)(ref.dense(image.reduction, tower.dtype) @ before)
        content = image.kind[image.reduction.anchor] == 0
        return torch.where(content[:, None], early, late)

    return replace
