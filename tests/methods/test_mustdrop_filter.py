import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.errors import PlanError
from foveate.methods.mustdrop_filter import MustDropFilter
from foveate.tokens import Extra, View

# One head, two words, four tokens. Sums 0.30, 0.08, 0.08, 0.04, in all 0.50; the most by one word 0.20, 0.04, 0.07, 0.03.
ROWS = torch.tensor([[[0.20, 0.04, 0.01, 0.01], [0.10, 0.04, 0.07, 0.03]]])


def view(k: int = 4, key: list[bool] | None = None, rows: torch.Tensor = ROWS, **more) -> View:
    marks = {} if key is None else {"key": torch.tensor(key)}
    return View(torch.zeros(rows.shape[2], 3), k, extras={"text_rows": Extra(rows)}, marks=marks, **more)


def test_both_thresholds_by_hand():
    """A fifth of 0.50 is 0.10, which only token 0 reaches; token 2 passes by a single word."""
    assert MustDropFilter(overall=0.2, single=0.05)(view()).anchor.tolist() == [0, 2]
    assert MustDropFilter(overall=0.2, single=0.5)(view()).anchor.tolist() == [0]
    assert MustDropFilter(overall=0.1, single=0.5)(view()).anchor.tolist() == [0, 1, 2], "0.08 reaches 0.05"
    assert MustDropFilter(overall=0.9, single=0.9)(view()).m == 0
    assert MustDropFilter()(view()) is None


def test_heads_are_averaged_before_the_largest_is_taken():
    """0.4 of one head and 0.0 of the other are 0.2."""
    rows = torch.tensor([[[0.4, 0.2]], [[0.0, 0.2]]])
    assert MustDropFilter(overall=1.0, single=0.3)(view(2, rows=rows)).m == 0


def test_key_tokens_survive():
    method = MustDropFilter(overall=0.2, single=0.5)
    assert method(view(key=[False, False, False, True])).anchor.tolist() == [0, 3]
    assert method(view(2, key=[False, False, False, True])).anchor.tolist() == [0, 3]


def test_a_budget_ranks_key_tokens_then_those_that_pass_then_sums():
    method = MustDropFilter(overall=0.2, single=0.05)  # 0 and 2 pass
    assert method(view(3)).anchor.tolist() == [0, 1, 2]
    assert method(view(1)).anchor.tolist() == [0]
    assert MustDropFilter(overall=0.2, single=0.9)(view(2)).anchor.tolist() == [0, 1], "of equal sums the first"
    assert method(view(2)).anchor.tolist() == [0, 2], "what passes goes before an equal sum"
    assert method(view(1, key=[False, True, True, False])).anchor.tolist() == [1], "no more key tokens than the budget"


def test_stops_and_counts():
    method = MustDropFilter()
    assert list(method.stops(32)) == [3, 7, 11, 15]
    n = 576
    for left, expected in ((3, 407), (2, 288), (1, 204), (0, 144)):
        rows = torch.full((1, 1, n), 1 / n)
        n = method(view(144, rows=rows, left=left, entered=576)).m
        assert n == expected


def run(model, batch, plan):
    with torch.no_grad(), compress(model, plan) as run:
        model(**batch)
    return run.report.images[0]


def test_with_a_budget_thresholds_drop_nothing_more():
    """36 tokens to 35: after the first of two stops they are there, and the second may not go on by thresholds."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    harsh = "mustdrop_filter:overall=0.05,single=0.05"
    assert run(model, batch, harsh + ",keep=35").tokens_out == 35
    free = run(model, batch, harsh)
    counts = [len(tokens) for _, tokens in free.layers]
    assert 0 < counts[-1] < 30 and counts == sorted(counts, reverse=True)
    assert run(model, batch, harsh + ",keep=1.0").tokens_out == 36


def test_key_tokens_of_the_tower_survive_the_filter():
    """The `works` sentence as far as two stages: thresholds that no token reaches leave the key tokens alone."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    image = run(model, batch, "mustdrop_merge:keep=20,key=0.2 > mustdrop_filter:overall=1.0,single=1.0")
    assert image.survivors.tolist() == image.kept[image.marks["key"]].tolist() and len(image.survivors) == 4
    assert image.tokens_out == 4
    image = run(model, batch, "mustdrop_merge:keep=20,key=0.2 > mustdrop_filter:keep=6")
    assert set(image.kept[image.marks["key"]].tolist()) < set(image.survivors.tolist()) and image.tokens_out == 6


def test_no_budget_is_needed():
    assert Plan.of("mustdrop_filter").steps[0].keep is None
    for fault in ("overall=-1.0", "single=-0.1", "layers=()"):
        with pytest.raises(PlanError, match=fault.split("=")[0]):
            Plan.of(f"mustdrop_filter:{fault}")
