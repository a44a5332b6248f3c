"""What steps between the language model's layers promise on every family: probes of each kind against the stock model.

The reference is the stock model itself, with two hooks on each layer: columns that do not run there are hidden from all
others by the mask, and keep the state they had. Nothing here uses the code that is tested, but for what a report says ran.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import reference as ref
import torch
from reference import IMAGE_A, IMAGE_B, MIXED, STEPS, batch_of, generated, logits_of, model_of
from test_attach import NO_SECOND_IMAGE, _pictures, _second_turn, _together

import foveate
import tiny
from foveate.budget import Budget
from foveate.errors import MethodError, UnsupportedError
from foveate.method import Card, LayerMethod, WorkMethod
from foveate.plan import Step
from foveate.routes import Route
from foveate.stages.follow import Cut
from foveate.stages.prefill import Prefill
from foveate.tokens import Reduction, View

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
every_kernel = pytest.mark.parametrize("attn", ["sdpa", "eager"])


def _some(n: int, k: int) -> torch.Tensor:
    """(k,) tokens that look random and depend on nothing but their place."""
    score = (torch.arange(n).double() * 12.9898).sin().mul(43758.5453).frac()
    return score.argsort()[:k].sort().values


@dataclass(frozen=True)
class Thin(LayerMethod):
    """Drops tokens before one layer."""

    card = Card(name="thin", title="probe: drop between layers", stages=("layers",))
    layer: int = 2

    def stops(self, depth):
        return (self.layer,)

    def __call__(self, view):
        return Reduction.drop(_some(view.n, view.k), view.n)


@dataclass(frozen=True)
class Melt(LayerMethod):
    """Averages runs of neighbours before one layer."""

    card = Card(name="melt", title="probe: merge between layers", stages=("layers",))
    layer: int = 2

    def stops(self, depth):
        return (self.layer,)

    def __call__(self, view):
        assign = torch.arange(view.n) * view.k // view.n
        first = torch.cat([assign.new_ones(1, dtype=torch.bool), assign[1:] != assign[:-1]])
        return Reduction.groups(assign, first.nonzero()[:, 0])


@dataclass(frozen=True)
class Leave(LayerMethod):
    """The picture leaves."""

    card = Card(name="leave", title="probe: exit", stages=("layers",), count="content")
    layer: int = 2

    def stops(self, depth):
        return (self.layer,)

    def __call__(self, view):
        return Reduction.nothing(view.n)


@dataclass(frozen=True)
class Detour(LayerMethod):
    """Some tokens run first, then all, then few: what was left aside comes back."""

    card = Card(name="detour", title="probe: route", stages=("layers",))
    first: float = 0.3

    def stops(self, depth):
        return (0, 1, 3)

    def __call__(self, view):
        if view.layer == 0:
            return Route(view.n, _some(view.n, int(self.first * view.n)))
        if view.layer == 1:
            assert view.marks["waiting"].sum() == view.n - int(self.first * view.n)
            return Route(view.n, torch.arange(view.n))
        assert "waiting" not in view.marks
        return Reduction.drop(_some(view.n, view.k), view.n)


@dataclass(frozen=True)
class Same(LayerMethod):
    """Keeps everything, whatever it is asked."""

    card = Card(name="same", title="probe: identity between layers", stages=("layers",), count="content")

    def stops(self, depth):
        return (0, 2)

    def __call__(self, view):
        return Reduction.identity(view.n)


PLANS = {
    "layer-0": [Thin(0)],
    "layer-2": [Thin(2)],
    "twice": [Thin(1), Thin(3)],
    "exit": [Leave(2)],
    "drop-exit": [Thin(1), Leave(3)],
    "late": [Detour(0.0)],
    "detour": [Detour(0.3)],
}
every_plan = pytest.mark.parametrize("plan", PLANS)


def steps(plan: list, keep=0.4) -> list[Step]:
    return [Step(method, Budget.parse(keep), "layers") for method in plan]


def layers_of(model) -> list:
    decoder = model.get_decoder()
    return list((decoder if hasattr(decoder, "layers") else decoder.model).layers)


@contextmanager
def by_mask(model, report, where, batch, merge=None):
    """The stock model in which a column that does not run in a layer is seen by none, and keeps its state.

    merge: {layer: function (rows, prompt) -> rows} of states that change before a layer.
    """
    layers, (rows, length) = layers_of(model), batch["input_ids"].shape
    idle = torch.zeros(len(layers), rows, length, dtype=torch.bool)
    for image in report.images:
        columns = where[image.sample][image.ordinal]
        course = [(0, image.kept), *image.layers]
        for i in range(len(layers)):
            runs = [tokens for layer, tokens in course if layer <= i][-1]
            idle[i, image.sample, columns] = True
            idle[i, image.sample, columns[runs]] = False
    hooks, held = [], {}

    def each(i, layer):
        def before(module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            times, fresh = len(states) // rows, states.shape[1]
            out = idle[i].repeat_interleave(times, 0)
            cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
            past = 0 if cache is None else cache.get_seq_length(i)
            if fresh > 1 and not past and merge and i in merge:
                states = torch.stack([merge[i](one, row // times) for row, one in enumerate(states)])
            held[i] = states
            if mask is None:
                mask = torch.ones(len(states), 1, fresh, past + fresh).bool().tril(past)
            mask = mask.expand(len(states), *mask.shape[1:])
            hidden = torch.cat([out, out.new_zeros(len(out), past + fresh - length)], 1)[:, -mask.shape[-1] :]
            if mask.dtype == torch.bool:
                mask = mask & ~hidden[:, None, None]
                mask = mask | ~mask.any(-1, keepdim=True)
            else:
                mask = mask.masked_fill(hidden[:, None, None], torch.finfo(mask.dtype).min)
            kwargs = {**kwargs, "attention_mask": mask}
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        def after(module, args, output):
            states = output[0] if isinstance(output, tuple) else output
            if states.shape[1] != length:
                return None
            out = idle[i].repeat_interleave(len(states) // rows, 0)
            states = torch.where(out[..., None], held[i], states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(after))

    for i, layer in enumerate(layers):
        each(i, layer)
    try:
        yield ~idle[-1] & batch["attention_mask"].bool()
    finally:
        for hook in hooks:
            hook.remove()


def close(ours, theirs, atol=1e-4):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# -- nothing to do ---------------------------------------------------------------------------------------------------


@every_family
def test_keeping_all_changes_no_bit(name):
    model, batch = model_of(name), batch_of(name)
    logits, sequences, said = ref.stock(name)
    with foveate.compress(model, steps([Thin(1), Detour()], 1.0)):
        assert torch.equal(logits_of(model, batch), logits)
        again, again_said = generated(model, batch)
    assert torch.equal(again, sequences) and torch.equal(again_said, said)


@every_family
@every_kernel
def test_a_forced_identity_changes_no_bit(name, attn, monkeypatch):
    """Every column runs, but all are gathered, masked and put back as if some did not."""
    model, batch = model_of(name, attn), batch_of(name)
    logits, (sequences, said) = logits_of(model, batch), generated(model, batch)

    def every(call, device):
        call.cut = Cut.keeping(call.valid, call.counts, call.right)

    monkeypatch.setattr(Prefill, "_assemble", every)
    valid = batch["attention_mask"].bool()
    with foveate.compress(model, steps([Same()])) as run:
        assert torch.equal(logits_of(model, batch)[valid], logits[valid])
        again, again_said = generated(model, batch)
    assert torch.equal(again, sequences) and torch.equal(again_said, said)
    assert run.report.layer_average == run.report.tokens_in / 3


@every_family
def test_prompt_without_images_is_left_alone(name):
    model, batch = model_of(name), batch_of(name, [[6], [9]])
    logits, (sequences, said) = logits_of(model, batch), generated(model, batch, 3)
    with foveate.compress(model, steps([Thin(2)])) as run:
        assert torch.equal(logits_of(model, batch), logits)
        again, again_said = generated(model, batch, 3)
    assert torch.equal(again, sequences) and torch.equal(again_said, said)
    assert run.report is None


# -- the same as the stock model -------------------------------------------------------------------------------------


@every_family
@every_kernel
@every_plan
def test_not_running_is_being_hidden(name, attn, plan):
    """Prompt logits, and 16 greedy steps, of a padded batch with several images and none."""
    model, batch = model_of(name, attn), batch_of(name)
    with foveate.compress(model, steps(PLANS[plan])) as run:
        ours = logits_of(model, batch)
        sequences, said = generated(model, batch, 16)
    where = ref.places(name, MIXED, batch)
    with by_mask(model, run.report, where, batch) as left:
        theirs = logits_of(model, batch)
        expected, expected_said = generated(model, batch, 16)
    close(ours[left], theirs[left])
    close(said, expected_said)
    assert torch.equal(sequences, expected)
    assert (ours - ref.stock(name)[0])[left].abs().max() > 1e-3, "something was lost"


@every_family
@every_kernel
def test_merged_states(name, attn):
    """Means before a layer are means of states, and what went into them is hidden from then on."""
    model, batch = model_of(name, attn), batch_of(name)
    with foveate.compress(model, steps([Melt(1)])) as run:
        ours, (sequences, said) = logits_of(model, batch), generated(model, batch, 4)
    where = ref.places(name, MIXED, batch)
    grown = [(i, where[i.sample][i.ordinal][i.kind == 0]) for i in run.report.images]

    def merge(states, row):
        states = states.clone()
        for image, columns in grown:
            if image.sample == row:
                n = len(columns)
                k = Budget.parse(0.4).counts([n])[0]
                assign = torch.arange(n) * k // n
                for slot in range(k):
                    mine = columns[assign == slot]
                    states[mine[0]] = states[mine].mean(0)
        return states

    with by_mask(model, run.report, where, batch, {1: merge}) as left:
        theirs, (expected, expected_said) = logits_of(model, batch), generated(model, batch, 4)
    close(ours[left], theirs[left])
    close(said, expected_said)
    assert torch.equal(sequences, expected)


@every_family
@every_plan
def test_batch_is_its_rows(name, plan):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, steps(PLANS[plan])) as run:
        together, report = logits_of(model, batch)[:, -1], run.report
        for i, prompt in enumerate(MIXED):
            alone = logits_of(model, batch_of(name, [prompt], first=i))[0, -1]
            close(together[i], alone)
            mine = run.report.images if any(s in prompt for s in (IMAGE_A, IMAGE_B)) else ()
            for one, other in zip(mine, report.of(i), strict=True):
                assert [(layer, t.tolist()) for layer, t in one.layers] == [
                    (layer, t.tolist()) for layer, t in other.layers
                ]
                assert one.average == other.average


# -- ways of generating ----------------------------------------------------------------------------------------------

WAYS = {"beams": {"num_beams": 2}, "returns": {"do_sample": True, "num_return_sequences": 2}}
# Its generate repeats the wrong features, with a run that leaves them as they are or without.
STOCK_FAILS = {"llama4": "Image features and image tokens do not match"}
STOCK_MIXES_UP = (
    "glm4v",
)  # its generate repeats the pictures of prompts with several in another order than the prompts


@every_family
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plan", ["twice", "detour"])
def test_ways_of_generating(name, way, plan):
    prompts = [[3, IMAGE_A, 4], [2, IMAGE_B, 5], [6]] if name in STOCK_MIXES_UP else MIXED
    model, batch = model_of(name), batch_of(name, prompts)

    def go():
        torch.manual_seed(3)
        return generated(model, batch, 4, **WAYS[way])

    with foveate.compress(model, steps(PLANS[plan])) as run:
        if name in STOCK_FAILS:
            with pytest.raises(ValueError, match=STOCK_FAILS[name]):
                go()
            return
        sequences, said = go()
    with by_mask(model, run.report, ref.places(name, prompts, batch), batch):
        expected, expected_said = go()
    agree = sequences == expected
    assert agree.float().mean() > 0.9  # a draw may fall between two nearly equal sums
    if way == "beams":
        assert agree.all()
    else:
        same = agree.cumprod(1)[:, -5:-1].bool()
        close(said[same], expected_said[same])


@every_family
@pytest.mark.parametrize("way", ["lookup", "other"])
@pytest.mark.parametrize("plan", ["fastv:layer=2", "pdrop"])
def test_assisted_decoding_is_greedy_decoding(name, way, plan):
    """Drafts come with the prompt in its first call: the last prompt token is before them."""
    if name == "paligemma" and way == "lookup":
        pytest.skip("its prompt is read in both directions, drafts included")
    model, batch = model_of(name), batch_of(name, [MIXED[1]], first=1)
    batch["input_ids"][:, -4:-2] = batch["input_ids"][:, -2:]  # something to look up
    with foveate.compress(model, plan, keep=0.3) as run:
        expected = generated(model, batch)[0]
        ran = [[t.tolist() for _, t in image.layers] for image in run.report.images]
        more = {"prompt_lookup_num_tokens": 3} if way == "lookup" else {"assistant_model": model_of(name, seed=1)}
        assert torch.equal(model.generate(**batch, max_new_tokens=STEPS, do_sample=False, **more), expected)
        assert [[t.tolist() for _, t in image.layers] for image in run.report.images] == ran


# -- conversations ---------------------------------------------------------------------------------------------------

ONE_WAY = [name for name in tiny.FAMILIES if name != "paligemma"]  # its prompt is read in both directions


@pytest.mark.parametrize("name", ONE_WAY)
@every_kernel
@pytest.mark.parametrize("prompts", [MIXED, MIXED[:1]], ids=["padded", "single"])
@pytest.mark.parametrize("plan", ["twice", "late", "exit"])
def test_second_turn_in_text(name, attn, prompts, plan):
    """generate on the returned cache says what the recomputed conversation says."""
    model, batch = model_of(name, attn), batch_of(name, prompts)
    with foveate.compress(model, steps(PLANS[plan])):
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        whole, _ = _second_turn(name, out.sequences, batch, [[4]] * len(prompts))
        _, ours = generated(model, whole, 3, past_key_values=out.past_key_values)
        _, again = generated(model, whole | _pictures(batch), 3)
    close(ours, again)


@pytest.mark.parametrize("name", [name for name in ONE_WAY if name not in NO_SECOND_IMAGE])
@every_kernel
@pytest.mark.parametrize("plan", ["layer-2", "twice", "late"])
def test_second_turn_with_an_image(name, attn, plan):
    """A picture that comes later goes the same way as if it had been there from the start."""
    model, batch = model_of(name, attn), batch_of(name, MIXED[:1])
    with foveate.compress(model, steps(PLANS[plan])) as run:
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        turn, new = _second_turn(name, out.sequences, batch, [[2, IMAGE_B, 3]])
        everything = turn | _together(_pictures(batch), _pictures(new))
        numbered = turn | _pictures(new) | {"position_ids": ref.generation_positions(model, everything)}
        _, ours = generated(model, numbered, 3, past_key_values=out.past_key_values)
        (image,) = run.report.images
        assert image.layers
        _, again = generated(model, everything, 3)
    close(ours, again)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_the_cache_goes_on_without_the_run(name):
    """An unpadded prompt: layers hold fewer columns, and stock decoding on them is what the run's would have been."""
    model, batch = model_of(name), batch_of(name, MIXED[:1])
    with foveate.compress(model, steps([Thin(1), Thin(3)])) as run:
        expected = generated(model, batch, 6)[0]
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    (image,) = run.report.images
    lost = [image.tokens_in - dict(image.layers).get(1, []).shape[0], image.tokens_in - image.tokens_out]
    if not image.structure_in:
        assert [held[0] - n for n in held] == [0, lost[0], lost[0], lost[1]]
    assert held[0] > held[1] > held[3]
    whole = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    for key in ref.ALIGNED:
        if key in batch:
            whole[key] = torch.cat([batch[key], batch[key].new_zeros(1, 2)], 1)
    rest = model.generate(**whole, past_key_values=out.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(rest, expected)


def test_a_padded_cache_wants_its_run():
    model, batch = model_of("llava"), batch_of("llava")
    with foveate.compress(model, steps([Thin(1)])):
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 2, dtype=torch.long)], 1)
    with pytest.raises(UnsupportedError, match="attach again"):
        model.generate(out.sequences, attention_mask=mask, past_key_values=out.past_key_values, max_new_tokens=2)


# -- what methods look at --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks(LayerMethod):
    """Notes its views, and keeps half."""

    card = Card(
        name="looks",
        title="probe: looks",
        stages=("layers",),
        needs=("first", "first_text", "last_row", "ahead_row", "text_rows", "text", "layer_keys", "text_keys"),
    )
    layer: int = 2
    seen: tuple = ()

    def stops(self, depth):
        return (self.layer,)

    def __call__(self, view: View):
        VIEWS.append(view)
        return Reduction.drop(_some(view.n, view.k), view.n)


VIEWS: list[View] = []


@every_family
@every_kernel
def test_rows_are_the_models_own_attention(name, attn):
    """Against the maps that eager attention returns, in a padded batch, and on what an earlier step left."""
    model, batch = model_of(name, attn), batch_of(name)
    VIEWS.clear()
    with foveate.compress(model, steps([Looks(2)])) as run:
        logits_of(model, batch)
    eager = model_of(name, "eager")
    with torch.no_grad():
        out = eager(**batch, output_attentions=True, output_hidden_states=True)
    where = ref.places(name, MIXED, batch)
    image_ids = batch["input_ids"] == tiny.image_token_id(name, model)
    assert len(VIEWS) == len(run.report.images) == 3
    for view, image in zip(VIEWS, run.report.images, strict=True):
        row, columns = image.sample, where[image.sample][image.ordinal][image.kind == 0]
        text = ~image_ids[row] & batch["attention_mask"][row].bool()
        asks = (text & (torch.arange(len(text)) > where[row][image.ordinal][-1])).nonzero()[:, 0]
        before, ahead = out.attentions[1][row], out.attentions[2][row]  # (h, L, L)
        close(view.need("last_row"), before[:, asks[-1]][:, columns], 1e-5)
        close(view.need("text_rows"), before[:, asks][..., columns], 1e-5)
        close(view.need("ahead_row"), ahead[:, asks[-1]][:, columns], 1e-5)
        if name != "qwen3_vl":  # deep-stack features join a state after it is noted
            close(view.need("text"), out.hidden_states[2][row, asks], 1e-4)
            close(view.x, out.hidden_states[2][row, columns], 1e-4)
        close(view.need("first_text"), out.hidden_states[0][row, asks], 1e-5)
        close(view.need("first"), out.hidden_states[0][row, columns], 1e-5)
        assert view.need("layer_keys").shape[0] == view.n and view.need("text_keys").shape[0] == len(asks)
        assert (view.layer, view.depth, view.entered, view.left) == (2, 4, view.n, 0)


def test_rows_after_an_earlier_step():
    """Softmax over what ran in the layer before; columns found again among those that are left."""
    model, batch = model_of("llava"), batch_of("llava")
    VIEWS.clear()
    with foveate.compress(model, steps([Thin(1), Looks(3)])):
        logits_of(model, batch)
    with foveate.compress(model, steps([Thin(1)])) as run:
        logits_of(model, batch)
    eager = model_of("llava", "eager")
    where = ref.places("llava", MIXED, batch)
    with by_mask(eager, run.report, where, batch), torch.no_grad():
        out = eager(**batch, output_attentions=True)
    for view, image in zip(VIEWS, run.report.images, strict=True):
        ran = where[image.sample][image.ordinal][dict(image.layers)[1]]
        close(view.need("last_row"), out.attentions[2][image.sample][:, -1][:, ran], 1e-5)
        close(view.need("ahead_row"), out.attentions[3][image.sample][:, -1][:, ran], 1e-5)


# -- training --------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("padding", ["left", "right"])
def test_labels_and_gradients(name, padding):
    """The loss is that of the masked model without the labels after a gap, and gradients reach the first layer."""
    model, batch = model_of(name), batch_of(name, padding=padding)
    labels = batch["input_ids"].clone()
    labels[batch["attention_mask"] == 0] = -100
    model.train()
    try:
        with foveate.compress(model, steps([Thin(1), Thin(3)])) as run:
            out = model(**batch, labels=labels, use_cache=False)
        weight = next(layers_of(model)[0].parameters())
        (grad,) = torch.autograd.grad(out.loss, [weight])
        where = ref.places(name, MIXED, batch)
        with by_mask(model, run.report, where, batch) as left:
            masked = labels.clone()
            masked[:, 1:][~left[:, :-1]] = -100
            theirs = model(**batch, labels=masked, use_cache=False)
            (expected,) = torch.autograd.grad(theirs.loss, [weight])
    finally:
        model.eval()
    close(out.loss, theirs.loss)
    close(grad, expected, 1e-3)
    assert torch.equal(labels[batch["attention_mask"] == 1], batch["input_ids"][batch["attention_mask"] == 1])


# -- taken off, and refused ------------------------------------------------------------------------------------------


@every_family
def test_removing_restores(name):
    model, batch = model_of(name), batch_of(name)
    logits = ref.stock(name)[0]
    before = ref.traces(model)
    with foveate.compress(model, steps([Looks(2)])):
        logits_of(model, batch)
        hook = layers_of(model)[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits_of(model, batch)
        hook.remove()
        assert logits_of(model, batch).shape == logits.shape
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits)


def test_refusals():
    model, batch = model_of("llava"), batch_of("llava")
    with pytest.raises(UnsupportedError, match="stops are"):
        foveate.compress(model, steps([Thin(4)]))
    with pytest.raises(UnsupportedError, match="no LayerMethod"):
        foveate.compress(model, [Step(foveate.registry.get("stride")(), Budget.parse(0.5), "layers")])
    with foveate.compress(model, steps([Looks(0)])), pytest.raises(MethodError, match="there is none"):
        logits_of(model, batch)
    with foveate.compress(model, steps([Thin(2)])), pytest.raises(UnsupportedError, match="cannot hold"):
        model.generate(**batch_of("llava", MIXED[:1]), max_new_tokens=2, cache_implementation="static")
    with foveate.compress(model, steps([Thin(2)])):
        model.train()
        model.gradient_checkpointing_enable()
        try:
            with pytest.raises(UnsupportedError, match="checkpointing"):
                model(**batch)
        finally:
            model.gradient_checkpointing_disable()
            model.eval()


# -- plans -----------------------------------------------------------------------------------------------------------


@every_family
def test_a_plan_through_the_stages(name):
    """Counts, layer by layer, of a reduction before the language model and two inside it."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, "divprune:keep=0.5 > fastv:layer=1,keep=0.5 > vtw:layer=3") as run:
        _, said = generated(model, batch, 4)
        rows = [generated(model, batch_of(name, [p], first=i), 4)[1] for i, p in enumerate(MIXED)]
    close(said, torch.cat(rows))
    for image in _through(model, batch):
        half = Budget.parse(0.5).counts([image.tokens_in])[0]
        quarter = Budget.parse(0.5).counts([half])[0]
        assert [after for _, _, after in image.stages] == [half, quarter, 0]
        assert image.average == (half + 2 * quarter) / 4
    assert run.report.layer_average > 0


def _through(model, batch):
    with foveate.compress(model, "divprune:keep=0.5 > fastv:layer=1,keep=0.5 > vtw:layer=3") as run:
        logits_of(model, batch)
    return run.report.images


def test_budgets_over_several_images():
    """A total is shared by what each has left when the step begins."""
    model, batch = model_of("llava_next"), batch_of("llava_next", [[2, IMAGE_A, 3, IMAGE_B, 5]])
    with foveate.compress(model, "fastv:keep=20/total") as run:
        logits_of(model, batch)
    assert run.report.tokens_out == 20 and len(run.report.images) == 2
    with foveate.compress(model, "fastv:keep=7") as run:
        logits_of(model, batch)
    assert [i.tokens_out for i in run.report.images] == [7, 7]


# -- every method on every family ------------------------------------------------------------------------------------

METHODS = [
    name
    for name, cls in foveate.registry.classes().items()
    if issubclass(cls, LayerMethod) and not issubclass(cls, WorkMethod)  # test_work.py
]


def _equal(name, method, budget):
    """The stock model, in which what the report says does not run is hidden, and what it says was merged is."""
    model, prompts = model_of(name), [[3, IMAGE_A, 4, IMAGE_B, 2]]
    batch = batch_of(name, prompts)
    with foveate.compress(model, method, keep=budget) as run:
        ours = logits_of(model, batch)
        sequences, said = generated(model, batch, 4)
    where, merges = ref.places(name, prompts, batch), {}
    for image in run.report.images:
        for layer, reduction in image.merges:
            left = [tokens for at, tokens in [(0, image.kept), *image.layers] if at < layer][-1]
            merges.setdefault(layer, []).append((where[0][image.ordinal][left], reduction))

    def merge(layer):
        def each(states, row):
            states = states.clone()
            for columns, reduction in merges[layer]:
                states[columns[reduction.anchor]] = ref.dense(reduction, states.dtype) @ states[columns]
            return states

        return each

    with by_mask(model, run.report, where, batch, {layer: merge(layer) for layer in merges}) as left:
        theirs, (expected, expected_said) = logits_of(model, batch), generated(model, batch, 4)
    close(ours[left], theirs[left])
    close(said, expected_said)
    assert torch.equal(sequences, expected)
    return run.report


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_method_on_family(name, method):
    report = _equal(name, method, 0.5)
    cls = foveate.registry.get(method)
    if cls.card.count == "fixed" and cls.card.budget == "left":
        assert [i.tokens_out for i in report.images] == [
            Budget.parse(0.5).counts([i.tokens_in])[0] for i in report.images
        ]
    if not cls().settled:
        assert report.layer_average < report.tokens_in / 2


@pytest.mark.wide
@every_family
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.1, 0.9, "3/image", "11/total"])
def test_method_on_family_at_other_budgets(name, method, keep):
    _equal(name, method, keep)


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_method_in_a_batch(name, method):
    """What a prompt keeps does not depend on the batch it is in."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, method, keep=0.5) as run:
        # By generate, which numbers a padded prompt as it numbers it alone; keys tell the difference.
        together, report = generated(model, batch, 2)[1], run.report
        for i, prompt in enumerate(MIXED[:2]):
            alone = generated(model, batch_of(name, [prompt], first=i), 2)[1][0]
            for one, other in zip(run.report.images, report.of(i), strict=True):
                assert [(at, t.tolist()) for at, t in one.layers] == [(at, t.tolist()) for at, t in other.layers]
            close(together[i], alone)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_method_in_other_dtypes(method, dtype):
    model, batch = model_of("llava", dtype=dtype), batch_of("llava", dtype=dtype)
    with foveate.compress(model, method, keep=0.5) as run:
        ours, _ = logits_of(model, batch), generated(model, batch, 2)
    assert ours.dtype == dtype and bool(ours.isfinite().all())
    assert run.report.images
