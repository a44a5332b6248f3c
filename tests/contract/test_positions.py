"""Merged tokens that carry several positions: against rotations worked out by hand, and the stock model that is fed them.

Eight frequencies per head everywhere. LLaVA has one axis. Qwen2.5-VL has three in sections of 4, 2 and 2, one after another;
Qwen3-VL has the same sections interleaved.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache

import pytest
import reference as ref
import torch
from probes import DROPS, Drop, Merge
from reference import IMAGE_A, IMAGE_B, MIXED, batch_of, generated, logits_of

import foveate
import tiny
from foveate.errors import PlanError, UnsupportedError
from foveate.families import adapt
from foveate.method import Card, Method
from foveate.plan import Plan
from foveate.stages.positions import Rotary, members
from foveate.tokens import Reduction

# By family: of each frequency its axis, and its part of P = 2.
AXIS = {
    "llava": [0, 0, 0, 0, 0, 0, 0, 0],
    "qwen2_5_vl": [0, 0, 0, 0, 1, 1, 2, 2],
    "qwen3_vl": [0, 1, 2, 0, 1, 2, 0, 0],
}
PART = {
    "llava": [0, 0, 0, 0, 1, 1, 1, 1],
    "qwen2_5_vl": [0, 0, 1, 1, 0, 1, 0, 1],
    "qwen3_vl": [0, 0, 0, 0, 1, 1, 1, 1],
}
every_kind = pytest.mark.parametrize("name", AXIS)


@dataclass(frozen=True)
class Uneven(Method):
    """Pairs of neighbours, at half the tokens; the second weighs three times as much as the first, which is the anchor."""

    card = Card(name="uneven", title="probe: weights", count="content")

    def __call__(self, view):
        return Reduction.groups(
            torch.arange(view.n) // 2, torch.arange(0, view.n, 2), torch.arange(view.n) % 2 * 2.0 + 1
        )


@cache
def model_of(name: str):
    """As the shared instances; but Qwen2.5-VL's sections 2, 3 and 3 have no common divisor."""
    model = tiny.build(name)
    if name == "qwen2_5_vl":
        model.get_decoder().rotary_emb.mrope_section = [4, 2, 2]
    return model


def rotations(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that the first decoder layer gets, (b, L, 16) each."""
    seen = {}

    def look(_, args, kwargs):
        seen["found"] = kwargs["position_embeddings"]

    hook = model.get_decoder().layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        logits_of(model, batch)
    finally:
        hook.remove()
    return seen["found"]


def axes_of(positions: torch.Tensor) -> torch.Tensor:
    return positions[-3:] if positions.ndim == 3 else positions[None]


# -- what a merged token's channels turn by ----------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("count", [1, 2])
def test_two_tokens_by_hand(name, count):
    """Pairs: channel by channel, frequency 10000^(-i/8) times the position of one of the two, on one of the axes."""
    model, batch = model_of(name), batch_of(name, [[3, IMAGE_A, 4]])
    columns = ref.places(name, [[3, IMAGE_A, 4]], batch)[0][0]
    positions = axes_of(ref.positions_of(model, batch))[:, 0]  # (axes, L)
    with foveate.compress(model, Merge(), keep=0.5, positions=f"preserved:{count}") as run:
        cos, sin = rotations(model, batch)
        (image,) = run.report.images
    assert image.members.shape == (len(image.kept), count)
    for slot, anchor in enumerate(image.kept.tolist()):
        pair = [anchor, anchor + 1] if anchor + 1 < len(columns) and anchor + 1 not in image.kept else [anchor] * 2
        assert image.members[slot].tolist() == pair[:count]
        assert torch.equal(image.positions[:, slot], positions[:, columns[pair[:count]]])
        for i, (axis, part) in enumerate(zip(AXIS[name], PART[name], strict=True)):
            turned = positions[axis, columns[pair[part if count == 2 else 0]]] * 10000 ** (-i / 8)
            at = int(columns[0]) + slot
            for channel in (i, i + 8):
                assert float(cos[0, at, channel]) == pytest.approx(float(turned.cos()), abs=1e-5)
                assert float(sin[0, at, channel]) == pytest.approx(float(turned.sin()), abs=1e-5)


@every_kind
def test_only_merged_tokens_turn_otherwise(name):
    """Text, and tokens that feed a slot alone, have the very rotations that they have with their own positions."""
    model, batch = model_of(name), batch_of(name)
    found = {}
    for positions in ("original", "preserved:2"):
        with foveate.compress(model, Merge(), keep=0.7, positions=positions) as run:
            found[positions], report = rotations(model, batch), run.report
    other = torch.zeros_like(found["original"][0][..., 0], dtype=torch.bool)  # (b, L) where anything differs
    for theirs, ours in zip(found["original"], found["preserved:2"], strict=True):
        other |= (theirs != ours).any(-1)
    merged = [int((i.members != i.kept[:, None]).any(1).sum()) for i in report.images]
    assert all(0 < m < len(i.kept) for m, i in zip(merged, report.images, strict=True))
    assert other.sum(1).tolist() == [
        sum(m for m, i in zip(merged, report.images, strict=True) if i.sample == row) for row in range(3)
    ]


@every_kind
@pytest.mark.parametrize("probe", DROPS.values(), ids=DROPS)
def test_drops_are_original_to_the_bit(name, probe):
    model, batch = model_of(name), batch_of(name)
    found = {}
    for positions in ("original", "preserved"):
        with foveate.compress(model, probe, keep=0.5, positions=positions) as run:
            found[positions] = logits_of(model, batch), *generated(model, batch, 4)
    assert all(map(torch.equal, *found.values()))
    assert all(torch.equal(i.members, i.kept[:, None].expand(i.members.shape)) for i in run.report.images)


@every_kind
def test_one_position_is_the_strongest_members(name):
    """P = 1: the stock model on a short prompt, whose merged tokens stand where their heaviest member stood."""
    model, batch = model_of(name), batch_of(name)
    where = ref.places(name, MIXED, batch)
    with foveate.compress(model, Uneven(), keep=0.5, positions="preserved:1") as run:
        ours, report = logits_of(model, batch), run.report
    keep = ref.kept(where, report, batch)
    positions = ref.positions_of(model, batch).clone()
    for i in report.images:
        columns = where[i.sample][i.ordinal]
        heavy = (i.kept + 1).clamp(max=len(columns) - 1)  # of pairs; a token left over is alone
        positions[..., i.sample, columns[i.kept]] = positions[..., i.sample, columns[heavy]]
    theirs = logits_of(model, ref.short(model, batch, keep, report, positions))
    torch.testing.assert_close(ours[keep_short(keep)], theirs[keep_short(keep)], atol=1e-4, rtol=0)


def keep_short(keep: torch.Tensor) -> torch.Tensor:
    """(b, L') which columns of a left-padded shortened batch are not padding."""
    return ref.pack(torch.ones_like(keep).long(), keep).bool()


@every_kind
def test_of_equals_the_anchor_comes_first(name):
    """So that with P = 1 a plain mean is where "original" has it."""
    model, batch = model_of(name), batch_of(name)
    with foveate.compress(model, Merge(), keep=0.3):
        logits = logits_of(model, batch)
    with foveate.compress(model, Merge(), keep=0.3, positions="preserved:1"):
        assert torch.equal(logits_of(model, batch), logits)


CHANNELS = {  # of the eight frequencies of a head; GLM-4V turns half of its channels, in sections of 1, 1 and 2
    "llava": [*range(8), *range(8)],
    "gemma3": [*range(8), *range(8)],
    "aya_vision": [i // 2 for i in range(16)],
    "llama4": [*range(8)],
    "glm4v": [0] * 8,
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_of_every_convention(name):
    """Two halves, by turns, complex numbers, and frequencies of their own for each kind of layer."""
    undo = []
    rotary = Rotary(adapt(ref.model_of(name)), 8, undo)
    for take_off in undo:
        take_off()
    assert rotary.count == (1 if name == "glm4v" else 8)
    assert all(part.tolist() == CHANNELS[name] for part in rotary._parts.values())
    assert len(rotary._parts) == (2 if name == "gemma3" else 1)


@pytest.mark.parametrize(("asked", "count"), [(8, 8), (7, 4), (3, 2), (100, 8)])
def test_the_number_divides_the_frequencies(asked, count):
    model, batch = model_of("llava"), batch_of("llava", [[3, IMAGE_A, 4]])
    with foveate.compress(model, Merge(), keep=0.5, positions=f"preserved:{asked}") as run:
        logits_of(model, batch)
    assert run.report.images[0].members.shape[1] == count
    assert len(run.report.notes) == (count != asked)


def test_frequencies_that_depend_on_the_length():
    """Merged tokens stand early; the prompt is so long that this model stretches its frequencies."""
    model, prompts = tiny.build("llava"), [[1, IMAGE_A, 30]]
    rotary, batch = model.get_decoder().rotary_emb, batch_of("llava", prompts)
    assert int(batch["input_ids"].shape[1]) > 40
    rotary.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    rotary.config.max_position_embeddings = rotary.max_seq_len_cached = rotary.original_max_seq_len = 40
    rotary.rope_type = "dynamic"
    with foveate.compress(model, Uneven(), keep=0.5, positions="preserved:1") as run:
        ours, report = logits_of(model, batch), run.report
    where = ref.places("llava", prompts, batch)
    keep, positions = ref.kept(where, report, batch), ref.positions_of(model, batch).clone()
    (image,) = report.images
    columns = where[0][0]
    positions[0, columns[image.kept]] = positions[0, columns[(image.kept + 1).clamp(max=len(columns) - 1)]]
    assert int(positions[0, columns].max()) < 40
    theirs = logits_of(model, ref.short(model, batch, keep, report, positions))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# -- any merging method, forward and decoding --------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("method", ["uneven", "vmtc", "pool", "kmeans", "dpcknn:keep=0.6 > tome"])
def test_any_method_that_merges(name, method):
    """The stock model on the shortened prompt, its rotary module replaced by a table put together from several."""
    model, batch = model_of(name), batch_of(name)
    where = ref.places(name, MIXED, batch)
    with foveate.compress(model, Uneven() if method == "uneven" else method, keep=0.5, positions="preserved:2") as run:
        ours, (_, steps) = logits_of(model, batch), generated(model, batch, 4)
        report = run.report
    keep = ref.kept(where, report, batch)
    assert any((i.members != i.kept[:, None]).any() for i in report.images)

    def table(positions: torch.Tensor) -> list[torch.Tensor]:
        """(axes, b, L') positions for each part."""
        found = []
        for part in range(2):
            moved = axes_of(positions).clone()
            for i in report.images:
                columns = where[i.sample][i.ordinal]
                own = axes_of(positions)[:, i.sample, columns[i.members[:, part]]]
                moved[:, i.sample, columns[i.kept]] = own
            found.append(ref.pack(moved, keep))
        return found

    rotary = model.get_decoder().rotary_emb
    part = torch.tensor(PART[name] * 2)

    def replaced(positions: torch.Tensor):
        ids = table(positions)

        def rotate(module, args, kwargs, output):
            given = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
            if given.shape[-1] != ids[0].shape[-1]:
                return None  # a step of decoding
            both = [module.forward(args[0], one if given.ndim == 3 else one[0]) for one in ids]
            return tuple(torch.where(part == 0, first, second) for first, second in zip(*both, strict=True))

        return rotary.register_forward_hook(rotate, with_kwargs=True)

    for positions, call in (
        (ref.positions_of(model, batch), lambda given: (logits_of(model, given), ours)),
        (ref.generation_positions(model, batch), lambda given: (generated(model, given, 4)[1], steps)),
    ):
        given = ref.short(model, batch, keep, report, positions)
        hook = replaced(positions)
        try:
            theirs, mine = call(given)
        finally:
            hook.remove()
        if theirs.shape[1] == keep_short(keep).shape[1]:
            theirs, mine = theirs[keep_short(keep)], mine[keep_short(keep)]
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_family(name):
    """A batch is its rows; and more than one position changes what the model says, if its frequencies can be divided."""
    model, batch = ref.model_of(name), batch_of(name)
    with foveate.compress(model, Merge(), keep=0.4):
        original = logits_of(model, batch)
    with foveate.compress(model, Merge(), keep=0.4, positions="preserved") as run:
        together, report = logits_of(model, batch), run.report
        for i, prompt in enumerate(MIXED):
            alone = logits_of(model, batch_of(name, [prompt], first=i))[0]
            torch.testing.assert_close(together[i, together.shape[1] - len(alone) :], alone, atol=1e-4, rtol=0)
            if i < 2:
                for one, other in zip(run.report.images, report.of(i), strict=True):
                    assert torch.equal(one.members, other.members)
    count = {"qwen2_vl": 1, "qwen2_5_vl": 1, "qwen3_vl": 2, "glm4v": 1}.get(name, 8)
    assert {i.members.shape[1] for i in report.images} == {count}
    assert any("not 8" in note for note in report.notes) == (count < 8)
    assert torch.equal(together, original) == (count == 1)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_beams_and_threads(name):
    """Rows repeated for beams carry the same; two threads do not see each other's tokens."""
    model = model_of(name)
    prompts = [[[3, IMAGE_A, 4]], [[2, IMAGE_B, 3, IMAGE_A, 5], [6]]]
    batches = [batch_of(name, mine) for mine in prompts]
    with foveate.compress(model, Merge(), keep=0.3, positions="preserved:2"):
        alone = [logits_of(model, batch) for batch in batches]
        one = generated(model, batches[0], 3)[0]
        wide = generated(model, batches[0], 3, num_beams=3, num_return_sequences=3)[0]
        assert len(wide) == 3 and wide.shape == (3, one.shape[1])
        failed = []

        def work(i: int) -> None:
            for _ in range(10):
                if not torch.allclose(logits_of(model, batches[i]), alone[i], atol=1e-5):
                    failed.append(i)

        threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


# -- on and off --------------------------------------------------------------------------------------------------------


@every_kind
def test_taken_off(name):
    """Also after an error in the middle of a call: the next call knows nothing of it."""
    model, batch = model_of(name), batch_of(name)
    stock = logits_of(model, batch)
    before = ref.traces(model)  # after a first call: the library notes things on its modules then
    with foveate.compress(model, Merge(), keep=0.5, positions="preserved:2"):
        inside = logits_of(model, batch)
        layer = model.get_decoder().layers[0]
        hook = layer.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits_of(model, batch)
        hook.remove()
        text = batch_of(name, [[9]])
        plain = logits_of(model, text)
        assert torch.equal(logits_of(model, batch), inside)
    assert ref.traces(model) == before
    assert torch.equal(logits_of(model, batch), stock)
    assert torch.equal(logits_of(model, text), plain)


def test_a_model_without_rotary_embedding_is_refused(monkeypatch):
    model = tiny.build("llava")
    monkeypatch.setattr(model.get_decoder(), "rotary_emb", torch.nn.Identity())
    before = ref.traces(model)
    with pytest.raises(UnsupportedError, match="no rotary position embedding"):
        foveate.compress(model, "kmeans", keep=0.5, positions="preserved")
    assert ref.traces(model) == before
    foveate.compress(model, Drop(), keep=0.5).remove()


def test_read_back():
    """Per merged token the several positions it carries, as tokens, as places in the grid, and as position ids."""
    model, batch = model_of("llava"), batch_of("llava", [[3, IMAGE_A, 4]])
    with foveate.compress(model, "pool", keep=0.25, positions="preserved") as run:
        logits_of(model, batch)
    (image,) = run.report.images
    for slot, anchor in enumerate(image.kept):
        mine = image.members[slot]
        assert mine[0] == anchor and len(mine) == 8
        assert len(mine.unique()) == int((image.reduction.dst == slot).sum())
        assert int(image.row[mine].max() - image.row[mine].min()) <= 2
    first = int(image.positions[0, 0, 0] - image.members[0, 0])
    assert torch.equal(image.positions, image.members[None] + first)
    data = run.report.to_dict()["images"][0]
    assert data["members"] == image.members.tolist() and data["positions"] == image.positions.tolist()
    with foveate.compress(model, "pool", keep=0.25) as run:
        logits_of(model, batch)
    assert run.report.images[0].members is None and "members" not in run.report.to_dict()["images"][0]


def test_members():
    """By weight, then the anchor, then index; two edges between the same pair count together; few are repeated in turn."""
    edges = [(5, 0, 1), (3, 0, 1), (4, 0, 1), (1, 0, 2), (2, 1, 1), (0, 2, 1), (6, 2, 0.5), (6, 2, 0.75), (7, 2, 0)]
    src, dst, weight = (torch.tensor(x) for x in zip(*edges, strict=True))
    reduction = Reduction(8, src, dst, weight, torch.tensor([4, 2, 0])).check()
    assert members(reduction, 3).tolist() == [[1, 4, 3], [2, 2, 2], [6, 0, 6]]
    assert members(reduction, 5)[0].tolist() == [1, 4, 3, 5, 1]
    assert members(Reduction.drop(torch.tensor([3, 1]), 8), 2).tolist() == [[3, 3], [1, 1]]
    nothing = Reduction(3, src[:0], dst[:0], None, torch.tensor([2]), torch.ones(1, 4))
    assert members(nothing, 2).tolist() == [[2, 2]]


def test_in_a_plan(tmp_path):
    plan = Plan.of("kmeans:keep=64", positions="preserved:4")
    assert plan.carried == 4 and Plan.of(plan.to_dict()) == plan
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.of("kmeans:keep=64", positions="preserved").carried == 8
    assert Plan.of("kmeans:keep=64", positions="contiguous").carried == Plan.of("kmeans:keep=64").carried == 0
    for wrong in ("preserved:0", "preserved:", "preserved:two", "preserved:-1", "original:4"):
        with pytest.raises(PlanError, match="positions="):
            Plan.of("kmeans:keep=64", positions=wrong)
