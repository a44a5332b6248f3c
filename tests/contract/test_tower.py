"""What reducing inside the vision tower promises, on every family: probes, then every method of the encoder stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import reference as ref
import torch
import views
from probes import BrokenError
from reference import IMAGE_A, MIXED, batch_of, generated, logits_of, model_of
from torch import Tensor
from transformers import AttentionInterface

import foveate
import tiny
from foveate import registry
from foveate.budget import Budget
from foveate.families import Layout, adapt
from foveate.method import Card, ScoreMethod, TowerMethod
from foveate.tokens import Reduction, View

every_family = pytest.mark.parametrize("name", tiny.FAMILIES)
METHODS = {name: cls for name, cls in registry.classes().items() if issubclass(cls, TowerMethod)}
every_method = pytest.mark.parametrize("method", METHODS)


@dataclass(frozen=True)
class Drop(ScoreMethod, TowerMethod):
    """Drops by place: a third of what has to go at the first stop, all of it at the second."""

    card = Card(name="drop_inside", title="probe", stages=("encoder",))
    start: int = 1

    def stops(self, depth: int) -> Sequence[int]:
        return (self.start, depth - 1)

    def score(self, view: View) -> Tensor:
        return (7.3 * view.row + 3.1 * view.col).double().sin().mul(43758.5453).frac().abs().float()

    def __call__(self, view: View) -> Reduction:
        k = view.k if not view.left else view.n - (view.n - view.k) // 3
        return super().__call__(replace(view, k=k))


@dataclass(frozen=True)
class Identity(TowerMethod):
    """Keeps everything, whatever it is asked: forces the whole path without changing anything."""

    card = Card(name="identity_inside", title="probe", stages=("encoder",), count="content")

    def stops(self, depth: int) -> Sequence[int]:
        return range(depth)

    @property
    def weighs(self) -> bool:
        return True

    def __call__(self, view: View) -> Reduction:
        return Reduction.identity(view.n, view.x.device)


@dataclass(frozen=True)
class Raises(TowerMethod):
    """Fails at its second stop, so that work is under way."""

    card = Card(name="raises_inside", title="probe", stages=("encoder",))

    def stops(self, depth: int) -> Sequence[int]:
        return (1, 2)

    def __call__(self, view: View) -> Reduction:
        if not view.left:
            raise BrokenError("inside a method")
        return Reduction.drop(torch.arange(view.n - 1), view.n)


# -- nothing to do ---------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("probe", ["identity", "all", *METHODS])
def test_keeping_all_changes_no_bit(name, probe):
    """keep=1.0; and a reduction that keeps all although it may not, which gathers and puts back at every block."""
    model, batch = model_of(name), batch_of(name)
    logits, sequences, steps = ref.stock(name)
    chosen = {"identity": Identity(), "all": Drop()}.get(probe) or METHODS[probe]()
    with foveate.compress(model, chosen, keep=0.5 if probe == "identity" else 1.0) as run:
        assert torch.equal(logits_of(model, batch), logits)
        assert all(
            len(image.tower) == (run.family.last_block() + 1) * (probe == "identity") for image in run.report.images
        )
        again, again_steps = generated(model, batch)
    assert run.report.tokens_in == run.report.tokens_out > 0
    assert torch.equal(again, sequences)
    assert torch.equal(again_steps, steps)


# -- the same as the stock model with the tokens hidden ---------------------------------------------------------------


def gone_from_blocks(family, batch: dict, report) -> tuple[list[Tensor], list[Layout]]:
    """(rows of the tower) for each block True where a row has gone before it, worked out from what the report says."""
    arguments, shapes = family.encoder_arguments(batch), []
    hook = family.blocks()[0].register_forward_pre_hook(
        lambda m, args, kwargs: shapes.append((args[0] if args else kwargs["hidden_state"]).shape), with_kwargs=True
    )
    with torch.no_grad():
        output = family.core.get_image_features(**arguments, return_dict=True)
    hook.remove()
    shape = torch.Size(shapes[0][:-1] if len(shapes[0]) == 3 else (1, shapes[0][0]))
    number, cls = torch.arange(shape.numel()).view(shape), family.cls_row()
    keep = torch.ones(shape[1], dtype=torch.bool)
    if cls is not None:
        keep[cls] = False
    layouts = family.layouts(arguments, output)
    flat = torch.cat(family.per_unit([number[:, keep]], layouts, arguments))
    source = Layout.join(layouts).source
    gone = []
    for block in range(len(family.blocks())):
        hidden, start = torch.ones(shape.numel(), dtype=torch.bool), 0
        hidden.view(shape)[:, ~keep] = False
        for image in report.images:
            entered = [tokens for before, tokens in image.tower if before <= block]
            tokens = start + entered[-1] if entered else None
            if tokens is None:  # rows that feed no token are there until the first stop
                hidden[:] = False
                break
            hidden[flat[source[tokens][source[tokens] >= 0]]] = False
            start += len(image.kind)
        gone.append(hidden)
    return gone, layouts


def hidden_in_tower(family, gone: list[Tensor]) -> list:
    """Let the blocks of the stock tower attend to no row that is gone. Returns what undoes it, and is called last."""
    place = {}

    def by_hand(module, query, key, value, mask=None, **kwargs):
        block = next(i for i, m in enumerate(modules) if m.__dict__.get("_mine") is module.__dict__.get("_mine"))
        start = place.get(block, 0)
        batched = query.shape[0] * query.shape[2] == len(gone[block])
        here = gone[block].view(query.shape[0], -1) if batched else gone[block][start : start + query.shape[2]][None]
        place[block] = 0 if batched else (start + query.shape[2]) % len(gone[block])
        logits = query @ key.mT * (kwargs.get("scaling") or query.shape[-1] ** -0.5)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        weights = logits.masked_fill(here[:, None, None], -torch.inf).softmax(-1).nan_to_num()
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("by_hand", by_hand)
    modules, undo = [family.attention(i) for i in range(len(gone))], []
    for module in modules:
        module.__dict__["_mine"] = object()
    configs = {id(m.config): m.config for m in modules}
    for config in configs.values():
        old = config._attn_implementation_internal
        config._attn_implementation_internal = "by_hand"
        undo.append(lambda config=config, old=old: setattr(config, "_attn_implementation_internal", old))
    undo.append(lambda: [m.__dict__.pop("_mine") for m in modules])
    return undo


@every_family
@pytest.mark.parametrize("start", [0, 1])
def test_drops_are_hidden_rows(name, start):
    """The stock model whose tower cannot see the rows from the block on, and whose decoder cannot see the columns."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, Drop(start), keep=0.5) as run:
        ours, report = logits_of(model, batch), run.report
        _, steps = generated(model, batch, 4)
    assert all(image.tokens_out == Budget.parse(0.5).counts([image.tokens_in])[0] for image in report.images)
    assert all([block for block, _ in image.tower] == [start, run.family.last_block()] for image in report.images)
    family = adapt(model)
    gone, _ = gone_from_blocks(family, batch, report)
    assert 0 < gone[start].sum() < gone[-1].sum()
    keep = ref.kept(ref.places(name, MIXED, batch), report, batch)
    hidden = batch | {"attention_mask": keep.long()}
    positions, later = ref.positions_of(model, batch), ref.generation_positions(model, batch)
    undo = hidden_in_tower(family, gone)
    try:
        ref.same_rows(ours, logits_of(model, hidden | {"position_ids": positions}), keep)
        torch.testing.assert_close(steps, generated(model, hidden | {"position_ids": later}, 4)[1], atol=1e-4, rtol=0)
    finally:
        for one in undo:
            one()
    assert torch.equal(logits_of(model, batch), ref.stock(name)[0])


# -- batches ---------------------------------------------------------------------------------------------------------


@every_family
@every_method
def test_batch_is_its_rows(name, method):
    """Exact counts; a padded batch keeps what its prompts keep alone, several images included; twice the same."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, method, keep=0.4) as run:
        together, report = logits_of(model, batch), run.report
        assert torch.equal(logits_of(model, batch), together), "deterministic"
        for i, prompt in enumerate(MIXED[:2]):
            alone = logits_of(model, batch_of(name, [prompt], first=i))[0]
            torch.testing.assert_close(together[i, together.shape[1] - len(alone) :], alone, atol=1e-4, rtol=0)
            for one, other in zip(run.report.images, report.of(i), strict=True):
                assert torch.equal(one.kept, other.kept)
    assert together.isfinite().all()
    for image in report.images:
        tiles = len(image.grids) if not run.family.units_are_images else 1
        asked = tiles * Budget.parse(0.4).counts([image.tokens_in // tiles])[0]
        assert image.tokens_out == image.stages[0][2] == image.stages[0][1] == asked
        counts = [len(tokens) for _, tokens in image.tower]
        assert counts == sorted(counts, reverse=True) and counts[-1] == asked
        content = image.kept[image.kind[image.kept] == 0]
        assert torch.equal(image.tower[-1][1], content)


@every_family
def test_steps_compose(name):
    """In the tower twice, then before the language model: one report, and every count."""
    model, batch = model_of(name), batch_of(name, [[3, IMAGE_A, 4]])
    plan = "onevision_encoder:keep=0.75 > tome_tower:keep=0.6 > fastervlm:keep=0.5 > visionzip:keep=0.5"
    with foveate.compress(model, plan) as run:
        assert logits_of(model, batch).isfinite().all()
    (image,) = run.report.images
    assert [name.split(":")[0] for name, _, _ in image.stages] == [s.split(":")[0] for s in plan.split(" > ")]
    assert all(asked == left for _, asked, left in image.stages)
    assert image.reduction.n == len(image.kind) and len(image.kept) == image.reduction.m
    assert "onevision_encoder" in str(run.report) and run.report.to_dict()["images"][0]["tower"][0][0] == 0
    assert run.report.seconds > 0


# -- taken off -------------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("where", ["nowhere", "method", "hook"])
def test_removing_restores(name, where):
    model, batch = model_of(name), batch_of(name)
    logits = ref.stock(name)[0]
    before = ref.traces(model)

    def fail(*_):
        raise BrokenError("inside a hook")

    hook = adapt(model).blocks()[2].register_forward_pre_hook(fail) if where == "hook" else None
    try:
        with foveate.compress(model, Raises() if where == "method" else "tome_tower", keep=0.5) as run:
            if where == "nowhere":
                generated(model, batch, 2)
            else:
                for call in (logits_of, generated):
                    with pytest.raises(BrokenError):
                        call(model, batch)
    finally:
        if hook:
            hook.remove()
    assert not run.active and ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), logits)


# -- methods by themselves --------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("shape", ["square", "tiles", "bare"])
def test_stop_by_stop(method, shape):
    """Never fewer than what is asked for in the end, which is there after the last stop, however few stops there are."""
    one = METHODS[method]()
    for stops in (1, 2, 5):
        for k in (1, views.size(shape) // 4, views.size(shape) - 1):
            view, before = views.view(shape, k), views.size(shape)
            for left in reversed(range(stops)):
                view = replace(view, k=k, left=left)
                view = replace(view, marks={**view.marks, **one.carry(view)})
                answer = one(view).check()
                assert k <= answer.m <= before
                before = answer.m
                if answer.m == view.n:
                    continue
                view = replace(view.take(answer.anchor), size=answer.sizes(view.size))
            assert view.n == k


@every_method
@pytest.mark.parametrize("depth", [2, 3, 24, 32])
def test_stops_are_blocks(method, depth):
    stops = list(METHODS[method]().stops(depth))
    assert stops and stops == sorted(set(stops)) and stops[0] >= 0 and stops[-1] < depth
