"""What steps on the cache promise: what was kept of it, decoded on, is the whole cache with the rest hidden, head by head.

The reference is the stock model on its whole cache, with a mask for each head. Nothing here uses the code that is tested,
but for what a report says stayed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import reference as ref
import torch
from reference import IMAGE_B, MIXED, STEPS, batch_of, generated, logits_of, model_of
from test_layers import Thin, close, layers_of

import foveate
import tiny
from foveate.budget import Budget
from foveate.entries import Entries, Eviction
from foveate.errors import MethodError, UnsupportedError
from foveate.method import CacheMethod, Card
from foveate.plan import Plan, Step
from foveate.tokens import Extra, Kind

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
every_kernel = pytest.mark.parametrize("attn", ["sdpa", "eager"])


@dataclass(frozen=True)
class Sift(CacheMethod):
    """Keeps other entries in each head and layer, by their place alone; layers have unequal budgets."""

    card = Card(name="sift", title="probe: cache", stages=("cache",), budget="entries", touches="all")
    slope: float = 0.0

    def allot(self, k, n, measures):
        layers = len(measures)
        return [max(1, round(k * (1 + self.slope * (1 - 2 * i / max(1, layers - 1))))) for i in range(layers)]

    def __call__(self, entries, score=None):
        place = torch.arange(entries.n).double()
        heads = torch.arange(len(entries.keys))[:, None] + 2.0 * entries.layer
        score = ((place + 7 * heads) * 12.9898).sin().mul(43758.5453).frac()
        return Eviction(entries.n, score.argsort(1)[:, : entries.k].sort(1).values)


@dataclass(frozen=True)
class Blend(CacheMethod):
    """Keeps every entry whose number is even, at most k of them, and averages the next one into it."""

    card = Card(
        name="blend", title="probe: merging cache", stages=("cache",), budget="entries", touches="all", count="content"
    )

    def __call__(self, entries, score=None):
        kept = torch.arange(0, entries.n, 2)
        slot = torch.arange(entries.n) // 2
        weight = torch.full((entries.n,), 0.5)
        weight[-1] = 0.5 if entries.n % 2 == 0 else 1.0
        heads = len(entries.keys)
        return Eviction(entries.n, kept.expand(heads, -1), slot.expand(heads, -1), weight.expand(heads, -1))


def plan(method, keep=0.5, *before) -> list[Step]:
    return [*before, Step(method, Budget.parse(keep), "cache")]


@contextmanager
def by_mask(model, report, batch):
    """The stock model that, after its prompt, sees in each head what a report says stayed, merged where it says so."""
    layers, (rows, length) = layers_of(model), batch["input_ids"].shape
    seen: dict[int, torch.Tensor] = {}
    thinned = {(one.layer, one.sample): one for one in report.cache}
    done: set[int] = set()
    hooks = []

    def each(i, layer):
        def before(module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            cache, fresh = kwargs["past_key_values"], states.shape[1]
            past = cache.get_seq_length(i)
            if not past or (i, 0) not in thinned:
                return None
            held = cache.layers[i]
            heads = held.keys.shape[1]
            times = len(states) // rows
            if i not in done:  # the first step after the prompt
                done.add(i)
                seen[i] = torch.zeros(rows, heads, length, dtype=torch.bool)
                for row in range(rows):
                    one = thinned[i, row]
                    e, number = one.eviction, one.number
                    for h in range(heads):
                        seen[i][row, h, number[e.kept[h]]] = True
                        if e.slot is not None:
                            for copy in range(times):
                                for x in (held.keys, held.values):
                                    mine = x[row * times + copy, h, number].clone()
                                    for s in range(e.m):
                                        fed = e.slot[h] == s
                                        mean = (e.weight[h][fed][:, None] * mine[fed]).sum(0)
                                        x[row * times + copy, h, number[e.kept[h, s]]] = mean
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(len(states), 1, fresh, past + fresh).bool().tril(past)
            groups = model.config.get_text_config().num_attention_heads // heads
            stays = torch.cat([seen[i], torch.ones(rows, heads, past + fresh - length, dtype=torch.bool)], -1)
            stays = stays.repeat_interleave(times, 0).repeat_interleave(groups, 1)[:, :, None]
            mask = mask.expand(len(states), groups * heads, *mask.shape[2:])
            if mask.dtype == torch.bool:
                mask = mask & stays
            else:
                mask = mask.masked_fill(~stays, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))

    for i, layer in enumerate(layers):
        each(i, layer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


PLANS = {
    "even": plan(Sift()),
    "uneven": plan(Sift(0.6), 0.4),
    "number": plan(Sift(), 11),
    "merged": plan(Blend()),
}


@every_family
@every_kernel
@pytest.mark.parametrize("which", PLANS)
def test_going_is_being_hidden(name, attn, which):
    """16 greedy steps of a padded batch, heads and layers unlike; the prompt itself is untouched."""
    model, batch = model_of(name, attn), batch_of(name)
    if all(kind != "full_attention" for kind in kinds(model)):
        with pytest.raises(UnsupportedError, match="sliding window"):
            foveate.compress(model, PLANS[which])
        return
    with foveate.compress(model, PLANS[which]) as run:
        logits = logits_of(model, batch)
        sequences, said = generated(model, batch, 16)
    assert torch.equal(logits, logits_of(model, batch))
    with by_mask(model, run.report, batch):
        expected, expected_said = generated(model, batch, 16)
    close(said, expected_said)
    assert torch.equal(sequences, expected)
    before, after = run.report.cache_bytes
    assert after < before


def kinds(model) -> list[str]:
    text = model.config.get_text_config()
    return getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers


@every_family
def test_keeping_all_changes_no_bit(name):
    """keep=1.0, and a budget larger than the prompt, which goes the whole way."""
    model, batch = model_of(name), batch_of(name)
    _, sequences, said = ref.stock(name)
    for keep in (1.0, 10_000):
        if keep != 1.0 and all(kind != "full_attention" for kind in kinds(model)):
            continue
        with foveate.compress(model, plan(Sift(), keep)):
            again, again_said = generated(model, batch)
        assert torch.equal(again, sequences) and torch.equal(again_said, said)


WITH_FULL = [name for name in tiny.FAMILIES if "full_attention" in kinds(model_of(name))]


@pytest.mark.parametrize("name", WITH_FULL)
def test_batch_is_its_rows(name):
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, plan(Sift(0.5), 0.4)):
        _, together = generated(model, batch, 6)
        rows = [generated(model, batch_of(name, [p], first=i), 6)[1] for i, p in enumerate(MIXED)]
    close(together, torch.cat(rows))


@pytest.mark.parametrize("name", WITH_FULL)
@every_kernel
def test_memory_is_freed(name, attn):
    """Bytes of the tensors that the cache holds, not of a formula; layers hold what they were given."""
    model, batch = model_of(name, attn), batch_of(name, MIXED[:1])
    with foveate.compress(model, plan(Sift(), 0.25)) as run:
        out = model.generate(**batch, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    n = batch["input_ids"].shape[1]
    k = Budget.parse(0.25).counts([n])[0]
    held = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert held == [k if kind == "full_attention" else n for kind in kinds(model)[: len(held)]]
    size = sum(x.nbytes for layer in out.past_key_values.layers for x in (layer.keys, layer.values))
    assert run.report.cache_bytes[1] == size < run.report.cache_bytes[0]
    assert all(x.is_contiguous() for layer in out.past_key_values.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("name", [n for n in WITH_FULL if n not in ("gemma3", "paligemma")])
def test_the_cache_goes_on_without_the_run(name):
    """An unpadded prompt: stock decoding on the thinned cache, hooks off."""
    model, batch = model_of(name), batch_of(name, MIXED[:1])
    if set(kinds(model)) != {"full_attention"}:
        pytest.skip("some of its layers have masks of their own")
    with foveate.compress(model, plan(Sift(0.5), 0.4)):
        expected, said = generated(model, batch, 6)
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    whole = {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    for key in ref.ALIGNED:
        if key in batch:
            whole[key] = torch.cat([batch[key], batch[key].new_zeros(1, 2)], 1)
    rest, rest_said = generated(model, whole, 4, past_key_values=out.past_key_values)
    assert torch.equal(rest, expected)
    assert torch.equal(rest_said, said[:, 2:])


@pytest.mark.parametrize("name", WITH_FULL)
@pytest.mark.parametrize("way", ["beams", "returns"])
def test_ways_of_generating(name, way):
    prompts = MIXED[:1]
    model, batch = model_of(name), batch_of(name, prompts)
    if name == "llama4":
        pytest.skip("its generate repeats the wrong features")
    options = {"beams": {"num_beams": 2}, "returns": {"do_sample": True, "num_return_sequences": 2}}[way]

    def go():
        torch.manual_seed(3)
        return generated(model, batch, 4, **options)

    with foveate.compress(model, plan(Sift(), 0.5)) as run:
        sequences, said = go()
    report = run.report
    halves = [one for one in report.cache if one.sample == 0]
    with by_mask(model, type(report)(**{**vars(report), "cache": tuple(halves)}), batch):
        expected, expected_said = go()
    assert torch.equal(sequences, expected)
    if way == "returns":
        close(said, expected_said)


@pytest.mark.parametrize("name", WITH_FULL)
@pytest.mark.parametrize("method", ["snapkv:keep=20,observe=4", "h2o:keep=20,decoding=False"])
def test_assisted_decoding_is_greedy_decoding(name, method):
    """A draft that comes with the prompt is no part of it: it neither scores nor counts."""
    model, batch = model_of(name), batch_of(name, [MIXED[1]], first=1)
    if name == "paligemma":
        pytest.skip("its prompt is read in both directions, drafts included")
    batch["input_ids"][:, -4:-2] = batch["input_ids"][:, -2:]
    with foveate.compress(model, method):
        expected = generated(model, batch)[0]
        ours = model.generate(**batch, max_new_tokens=STEPS, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(ours, expected)


# -- composition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_FULL)
@every_kernel
def test_before_inside_and_after(name, attn):
    """One plan through all stages: batch is its rows, and each layer's cache holds what it was given of what ran."""
    model, batch = model_of(name, attn), batch_of(name)
    whole = "divprune:keep=0.5 > fastv:layer=2,keep=0.5 > snapkv:keep=12,observe=4"
    with foveate.compress(model, whole) as run:
        _, said = generated(model, batch, 6)
        rows = [generated(model, batch_of(name, [p], first=i), 6)[1] for i, p in enumerate(MIXED)]
        report = run.report
    close(said, torch.cat(rows))
    assert {one.eviction.m for one in report.cache} <= {12, *range(1, 12)}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_next"])
def test_after_layers_only_what_ran_is_there(name):
    """Layers that ran fewer columns have fewer entries; what methods see of them is told apart."""
    model, batch = model_of(name), batch_of(name)
    SEEN.clear()
    with foveate.compress(model, plan(Notes(), 0.5, Step(Thin(2), Budget.parse(0.3), "layers"))) as run:
        generated(model, batch, 2)
    where, image_id = ref.places(name, MIXED, batch), tiny.image_token_id(name, model)
    for layer, entries in SEEN:
        ids = batch["input_ids"][entries.sample][entries.number]
        assert torch.equal(entries.kind != Kind.TEXT, ids == image_id)
        gone = torch.ones_like(batch["input_ids"][entries.sample]).bool()
        for image in run.report.of(entries.sample):
            columns = where[image.sample][image.ordinal]
            gone[columns] = False
            gone[columns[image.layers[-1][1]]] = True
        assert torch.equal(entries.left, gone[entries.number])
        if layer >= 2:
            assert bool(entries.left.all())


@dataclass(frozen=True)
class Notes(CacheMethod):
    """Notes its entries."""

    card = Card(
        name="notes",
        title="probe: notes",
        stages=("cache",),
        needs=("window_rows", "text_rows", "received"),
        budget="entries",
        touches="all",
    )

    @property
    def window(self):
        return 3

    def score(self, entries):
        SCORED.append(entries)
        return entries.need("received").sum(1)

    def __call__(self, entries, score=None):
        sample = sum(layer == entries.layer for layer, _ in SEEN)
        SEEN.append((entries.layer, _Seen(sample, entries.number, entries.kind, entries.left)))
        return Eviction(entries.n, torch.arange(entries.k).expand(len(entries.keys), -1))


@dataclass
class _Seen:
    sample: int
    number: torch.Tensor
    kind: torch.Tensor
    left: torch.Tensor


SEEN: list = []
SCORED: list[Entries] = []


@pytest.mark.parametrize("name", WITH_FULL)
@every_kernel
def test_rows_are_the_models_own_attention(name, attn):
    model, batch = model_of(name, attn), batch_of(name)
    SCORED.clear()
    SEEN.clear()
    with foveate.compress(model, plan(Notes(), 0.5)):
        model.generate(**batch, max_new_tokens=1, do_sample=False)
    eager = model_of(name, "eager")
    positions = ref.generation_positions(model, batch)
    with torch.no_grad():
        maps = eager(**batch, position_ids=positions, output_attentions=True).attentions
    image = batch["input_ids"] == tiny.image_token_id(name, model)
    layers = [i for i, kind in enumerate(kinds(model)) if kind == "full_attention"]
    assert len(SCORED) == 3 * len(layers)
    for i, entries in enumerate(SCORED):
        layer, row = layers[i // 3], i % 3
        n = int(batch["attention_mask"][row].sum())
        heads = len(entries.keys)
        theirs = maps[layer][row][:, -n:, -n:].unflatten(0, (heads, -1))  # (h, g, n, n)
        close(entries.need("window_rows"), theirs[:, :, -3:], 1e-5)
        close(entries.need("received"), theirs.sum(2), 1e-4)
        last = image[row].nonzero()
        after = n - (image.shape[1] - 1 - int(last[-1])) if len(last) else 0
        text = torch.arange(n) >= after
        close(entries.need("text_rows"), theirs[:, :, text], 1e-5)


# -- while decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_FULL)
@every_kernel
@pytest.mark.parametrize("method", ["h2o:keep=12", "streamingllm:keep=12"])
def test_the_cache_does_not_grow(name, attn, method):
    """As many entries go as come; short prompts first fill their budget; a batch is its rows."""
    model, batch = model_of(name, attn), batch_of(name)
    with foveate.compress(model, method):
        out = model.generate(
            **batch, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        said, rows = torch.stack(out.logits, 1), []
        for i, prompt in enumerate(MIXED):
            row = batch_of(name, [prompt], first=i)
            alone = model.generate(
                **row, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            rows.append(torch.stack(alone.logits, 1))
            n = row["input_ids"].shape[1]
            for layer, kind in zip(alone.past_key_values.layers, kinds(model), strict=False):
                if kind == "full_attention":
                    assert layer.keys.shape[2] == min(12, n + 11)
    close(said, torch.cat(rows))
    for layer, kind in zip(out.past_key_values.layers, kinds(model), strict=False):
        if kind == "full_attention":
            assert layer.keys.shape[2] == 12


def test_streaming_forgets_the_oldest_after_the_sinks():
    """Against a mask: at every step a query sees the first two columns and the last eight."""
    model, batch = model_of("llava"), batch_of("llava", MIXED[:1])
    n = batch["input_ids"].shape[1]
    with foveate.compress(model, "streamingllm:keep=10,sinks=2"):
        sequences, said = generated(model, batch, 10)
    hooks = []

    def before(module, args, kwargs):
        past = kwargs["past_key_values"].layers[layers_of(model).index(module)].get_seq_length()
        if not past:
            return None
        columns = torch.arange(past + 1)
        seen = (columns < 2) | (columns >= past + 1 - 9)  # eight that were kept, and itself
        return args, {**kwargs, "attention_mask": seen[None, None, None]}

    for layer in layers_of(model):
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
    try:
        expected, expected_said = generated(model, batch, 10)
    finally:
        for hook in hooks:
            hook.remove()
    assert n > 10
    close(said, expected_said)
    assert torch.equal(sequences, expected)


# -- refused, and taken off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_FULL)
def test_removing_restores(name):
    model, batch = model_of(name), batch_of(name)
    logits, sequences, _ = ref.stock(name)
    before = ref.traces(model)
    with foveate.compress(model, plan(Notes(), 0.5)):
        generated(model, batch, 2)
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits) and torch.equal(generated(model, batch)[0], sequences)


def test_refusals():
    model, batch = model_of("llava"), batch_of("llava", MIXED[:1])
    with pytest.raises(UnsupportedError, match="no CacheMethod"):
        foveate.compress(model, [Step(foveate.registry.get("stride")(), Budget.parse(0.5), "cache")])
    with pytest.raises(UnsupportedError, match="thins out the same cache"):
        foveate.compress(model, "snapkv:keep=0.5 > h2o:keep=0.5")
    with foveate.compress(model, plan(Sift())), pytest.raises(UnsupportedError, match="cannot hold"):
        model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    bad = Eviction(4, torch.tensor([[2, 1]]))
    with pytest.raises(MethodError, match="out of order"):
        bad.check()


def test_text_prompts_are_thinned_too():
    """The card says that it touches all tokens."""
    model, batch = model_of("llava"), batch_of("llava", [[30]])
    with foveate.compress(model, "streamingllm:keep=8,decoding=False") as run:
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    assert out.past_key_values.layers[0].keys.shape[2] == 8 + 1
    assert run.report.cache and not run.report.images


# -- every method ----------------------------------------------------------------------------------------------------

METHODS = {n: cls for n, cls in foveate.registry.classes().items() if issubclass(cls, CacheMethod)}


def entries(n: int = 40, k: int = 10, seed: int = 0, layer: int = 1, dtype=torch.float32) -> Entries:
    """Entries that carry every extra: two key heads, two query heads each; columns 5 to 24 are an image's."""
    draw = torch.Generator().manual_seed(seed)
    columns = torch.arange(n)
    kind = torch.where((columns >= 5) & (columns < 25), int(Kind.CONTENT), int(Kind.TEXT))

    def rows(q: int) -> torch.Tensor:
        logits = torch.randn(2, 2, n, n, generator=draw).masked_fill(~torch.ones(n, n).bool().tril(), -torch.inf)
        return logits.softmax(-1)[:, :, -q:]

    extras = {
        "window_rows": Extra(rows(min(n, 32))),
        "text_rows": Extra(rows(min(n, max(1, n - 25)))),
        "received": Extra(rows(n).sum(2)),
    }
    keys, values = (torch.randn(2, n, 8, generator=draw).to(dtype) for _ in range(2))
    left = (columns % 3 > 0) | (kind == Kind.TEXT)
    return Entries(keys, values, kind, columns, left, k, layer, 4, extras)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "k"), [(40, 10), (40, 1), (40, 39), (40, 40), (1, 1), (7, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_counts_order_and_determinism(method, n, k, dtype):
    one, cls = entries(n, k, dtype=dtype), METHODS[method]
    answer = cls()(one, cls().score(one)).check()
    again = cls()(one, cls().score(one))
    assert answer.n == n and torch.equal(answer.kept, again.kept)
    if cls.card.count == "fixed":
        assert answer.m == k
    assert bool(answer.apply(one.keys).isfinite().all()) and answer.apply(one.values).dtype == dtype
    if k == n and cls.card.count == "fixed":
        assert answer.whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [4, 100, 399])
def test_layers_share_the_budget(method, k):
    if METHODS[method]().settled:
        pytest.skip("it has no budget")
    n, layers = 400, 8
    measures = [METHODS[method]().measure(entries(seed=i)) for i in range(layers)]
    given = METHODS[method]().allot(k, n, measures)
    assert len(given) == layers and all(0 < one <= n for one in given)
    assert sum(given) == k * layers


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_method_on_family(name, method):
    model, batch = model_of(name), batch_of(name, [MIXED[1], [2, IMAGE_B, 3]])
    if name not in WITH_FULL:
        with pytest.raises(UnsupportedError, match="sliding window"):
            foveate.compress(model, method, keep=0.4)
        return
    decodes = METHODS[method]().evicts
    text = f"{method}:keep=0.4" + (",decoding=False" if decodes else "")
    with foveate.compress(model, Plan.of(text)) as run:
        sequences, said = generated(model, batch, 6)
    with by_mask(model, run.report, batch):
        expected, expected_said = generated(model, batch, 6)
    close(said, expected_said)
    assert torch.equal(sequences, expected)
