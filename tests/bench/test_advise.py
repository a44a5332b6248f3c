"""Advice: targets as text, what decides a plan, in which order, and whole runs on a tiny model and on the testbed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from bench import stub
from foveate import testbed
from foveate.attach import compress
from foveate.bench.advice import sequential
from foveate.bench.advice.advise import Asking, Candidate, advise, check_time, check_tokens
from foveate.bench.advice.targets import METHODS, Targets, about, candidates, plans_of
from foveate.bench.advice.verdict import result
from foveate.bench.runner import STOCK, Entry
from foveate.bench.tasks import Task
from foveate.errors import PlanError, UnsupportedError
from foveate.plan import Plan

# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "drop", "time", "tokens"),
    [
        (("1pt", None, None), 0.01, None, None),
        (("0.5 pt", None, None), 0.005, None, None),
        (("2%", "0.6x", None), 0.02, (0.6, "x"), None),
        (("3 points", "200ms", "<=256/image"), 0.03, (0.2, "s"), (256, "image")),
        ((None, "1.5s", "64/image"), None, (1.5, "s"), (64, "image")),
        ((None, None, "<= 0.25"), None, None, (0.25, "share")),
        ((None, None, "<=25%"), None, None, (0.25, "share")),
    ],
)
def test_targets_are_read(given, drop, time, tokens):
    found = Targets.parse(*given)
    assert (found.drop, found.time, found.tokens) == (pytest.approx(drop) if drop else None, time, tokens)
    assert len(found.texts()) == sum(part is not None for part in given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, None, None), "--max-drop 1pt"),
        (("1", None, None), "0.5pt"),
        (("0pt", None, None), "0.5pt"),
        (("-1pt", None, None), "0.5pt"),
        (("100pt", None, None), "less than 100"),
        ((None, "0.6", None), "200ms"),
        ((None, "fast", None), "200ms"),
        ((None, None, "256"), "<=256/image"),
        ((None, None, ">=256/image"), "<=256/image"),
        ((None, None, "256/total"), "<=256/image"),
    ],
)
def test_targets_that_cannot_be_read_come_with_examples(given, says):
    with pytest.raises(UnsupportedError, match=says):
        Targets.parse(*given)


@pytest.mark.parametrize(
    ("tokens", "keeps"),
    [(None, [0.5, 0.25, 0.125]), ("<=256/image", [256, 128, 64]), ("<=1/image", [1]), ("<=0.4", [0.4, 0.2, 0.1])],
)
def test_budgets_follow_from_the_target(tokens, keeps):
    targets = Targets.parse("1pt", None, tokens)
    found = candidates(targets)
    assert len(found) == len(METHODS) * len(keeps)
    assert [entry.label for entry in found[: len(keeps)]] == [str(Plan.of(METHODS[0], keep)) for keep in keeps]
    assert len(candidates(targets, ["norm"], [0.5, "50%"])) == 1


def test_plans_by_name_and_by_file(tmp_path):
    Plan.of("norm:keep=9", positions="contiguous").save(tmp_path / "some.json")
    found = plans_of(f"random:keep=9 > stride:keep=4; {tmp_path / 'some.json'};")
    assert [entry.label for entry in found] == [
        "random:keep=9/image > stride:keep=4/image",
        "norm:keep=9/image (contiguous positions)",
    ]
    with pytest.raises(UnsupportedError, match="names no plan"):
        plans_of(" ; ")
    with pytest.raises(PlanError, match="norm"):
        plans_of("nrom:keep=9")


# -- one plan ----------------------------------------------------------------------------------------------------------


def candidate(label="norm:keep=9", ratios=(0.5, 0.5, 0.5), tokens=9.0):
    one = Candidate(Entry(label, Plan.of("norm:keep=9")))
    one.ratios, one.seconds = list(ratios), [0.1 * ratio for ratio in ratios]
    one.tokens = one.most = one.entering = tokens
    one.share = tokens / 36
    return one


@pytest.mark.parametrize(
    ("text", "most", "meets"),
    [("<=9/image", 9, True), ("<=9/image", 10, False), ("<=0.25", 9, True), ("<=0.24", 9, True), ("<=0.2", 9, False)],
)
def test_tokens_are_held_to_their_target(text, most, meets):
    one = candidate()
    one.most = most
    check_tokens(one, 36, Targets.parse(None, None, text))
    assert (one.verdict == "open") is meets and bool(one.why) is not meets


@pytest.mark.parametrize(
    ("given", "ratios", "meets", "says"),
    [
        ((None, "0.6x", None), (0.5, 0.55, 0.6, 0.9), False, "a quarter"),
        ((None, "0.6x", None), (0.5, 0.55, 0.6, 0.6), True, ""),
        ((None, "0.6x", None), (0.7, 0.7, 0.5), False, "0.70x, not 0.60x"),
        ((None, "60ms", None), (0.5, 0.55, 0.6, 0.6), True, ""),
        ((None, "40ms", None), (0.5, 0.55, 0.6, 0.6), False, "57.5 ms, not 40 ms"),
        (("1pt", None, None), (0.9, 0.9, 0.9), True, ""),
        (("1pt", None, None), (1.1, 1.1, 0.9), False, "saves no time"),
        (("1pt", None, "<=9/image"), (1.1, 1.1, 0.9), True, ""),
    ],
)
def test_times_are_held_to_their_target(given, ratios, meets, says):
    one = candidate(ratios=ratios)
    check_time(one, Targets.parse(*given))
    assert (one.verdict == "open") is meets and says in one.why


# -- many plans and their answers --------------------------------------------------------------------------------------


def samples(n, slices=("all",)):
    return [stub.Sample(slices[i % len(slices)], "?", "yes") for i in range(n)]


def asked(plans, blocks, drop=0.05, same=False, alpha=0.05, size=100, slices=("all",), available=10**6):
    """Plans whose answers are wrong at the places given, asked in blocks, next to a model that is always right."""
    task = Task("made", samples(size, slices), None, lambda said, sample: said == sample.answer)
    asking = Asking([one for one, _ in plans], drop, same, alpha, available)
    rounds = []
    for block in range(blocks):
        left = [(one, wrong) for one, wrong in plans if one.verdict == "open"]
        if not left:
            break
        rounds.append([one.entry.label for one, _ in left])
        said = {STOCK: ["yes"] * size}
        said |= {one.entry.label: ["no" if i in wrong else "yes" for i in range(size)] for one, wrong in left}
        asking.block(task, block * size, said, {})
    asking.close()
    return asking, rounds, replace(task, samples=samples(size * blocks, slices))


def test_a_plan_without_losses_is_accepted_as_soon_as_its_bound_allows():
    one = candidate()
    _, rounds, _ = asked([(one, ())], 9, drop=0.05)
    assert one.verdict == "accepted" and one.high <= 0.05 and len(rounds) == 1
    assert (one.low, one.high) == sequential.bounds([0, 100, 0], (-1, 0, 1), 0.05)
    one = candidate()
    _, rounds, _ = asked([(one, ())], 9, drop=0.015)
    assert one.verdict == "accepted" and len(rounds) == next(
        n for n in range(1, 9) if sequential.bounds([0, 100 * n, 0], (-1, 0, 1), 0.05)[1] <= 0.015
    )


def test_a_plan_that_loses_is_refused_and_asked_no_more():
    bad, good = candidate("bad"), candidate("good", (0.6,) * 3)
    _, rounds, _ = asked([(bad, range(40)), (good, range(2))], 20)
    assert bad.verdict == "refused" and bad.failed == "drop" and bad.low > 0.05 and len(bad.changes) == 100
    assert good.verdict == "accepted" and rounds[-1] == ["good"] and len(rounds) > 1


def test_what_is_slower_than_an_accepted_plan_is_not_needed():
    fast, slow, same = candidate("fast"), candidate("slow", (0.9,) * 3), candidate("same", tokens=4.0)
    asking, rounds, _ = asked([(fast, ()), (slow, (1,)), (same, range(3))], 15, drop=0.04)
    assert slow.verdict == "not needed" and slow.why == "fast is better"
    assert same.verdict == "undecided", "as fast, with fewer tokens: it might have been better"
    assert asking.best() is fast and len(rounds) == 15 and rounds[-1] == ["same"]


def test_the_better_plan_is_recommended_when_both_are_accepted():
    fast, slow = candidate("fast"), candidate("slow", (0.9,) * 3)
    asking, _, task = asked([(slow, ()), (fast, ())], 3)
    assert asking.best() is fast
    found = result(task, Targets(0.05), [slow, fast], asking, {"tokens_per_image": 36.0})
    assert [row["label"] for row in found["rows"]] == ["fast", "slow"] and found["recommended"] == "fast"
    assert found["answer"].startswith("Use fast: 9 visual tokens per image instead of 36, first token 0.50x")
    assert "Careful" not in found["answer"]
    assert found["uncompressed"]["accuracy"] == 1.0 and found["uncompressed"]["low"] < 1.0


def test_samples_that_run_out_leave_a_plan_undecided():
    one, worse = candidate(), candidate("worse", (0.4,) * 3)
    asking, _, task = asked([(one, range(1)), (worse, range(3))], 2, drop=0.02)
    assert one.verdict == worse.verdict == "undecided" and asking.best() is None and one.more > 0
    found = result(task, Targets(0.02), [one, worse], asking, {"tokens_per_image": 36.0})
    assert found["recommended"] is None and found["plan"] is None
    for words in (
        "Do not compress on this evidence",
        "Neither recommended nor refuted",
        "norm",
        f"about {one.more} more",
    ):
        assert words in found["answer"]
    more = 200 + one.more
    _, high = sequential.bounds([0, more - more / 100, more / 100], (-1, 0, 1), 0.05 / 2)
    assert high <= 0.0201, "so many samples would have done"


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (3146, "3100"), (114432, "110000"), (96, "96")])
def test_samples_are_rounded_as_they_are_guessed(number, text):
    assert about(number) == f"about {text}"


def test_a_better_plan_that_stays_open_is_named():
    fast, slow = candidate("fast"), candidate("slow", (0.9,) * 3)
    asking, _, task = asked([(fast, range(4)), (slow, ())], 4, drop=0.04)
    found = result(task, Targets(0.04), [fast, slow], asking, {"tokens_per_image": 36.0})
    assert found["recommended"] == "slow" and "not shown to be good enough: fast" in found["answer"]


def test_a_better_plan_is_given_up_where_samples_cannot_decide_it_but_never_the_last_one():
    fast, slow = candidate("fast"), candidate("slow", (0.9,) * 3)
    _, rounds, _ = asked([(fast, range(4)), (slow, ())], 9, drop=0.04, available=900)
    assert slow.verdict == "accepted" and fast.verdict == "undecided" and "too close" in fast.why
    assert len(rounds) < 9, "asked no longer than it took to accept the other"
    alone = candidate()
    _, rounds, _ = asked([(alone, range(4))], 9, drop=0.04, available=900)
    assert alone.verdict == "undecided" and len(rounds) == 9


def test_alpha_is_shared_out_over_the_plans_that_are_asked():
    alone, among = candidate(), candidate()
    asked([(alone, range(2))], 1)
    asking, _, _ = asked([(among, range(2)), *((candidate(str(i)), range(50)) for i in range(9))], 1)
    assert asking.level == pytest.approx(0.005) and among.high > alone.high


def test_without_a_named_drop_all_samples_are_asked_and_the_smallest_is_taken():
    few, many = candidate("few", (0.9,) * 3), candidate("many")
    asking, rounds, task = asked([(few, range(1)), (many, range(30))], 3, drop=None)
    assert asking.best() is few and many.verdict == "not needed" and len(rounds) == 3
    found = result(task, Targets.parse(None, "0.95x"), [few, many], asking, {"tokens_per_image": 36.0})
    assert "No largest drop was named" in found["answer"]


def test_a_model_that_is_never_right_has_nothing_to_lose():
    one = candidate()
    task = Task("made", samples(100), None, lambda said, sample: False)
    asking = Asking([one], 0.05, False, 0.05)
    asking.block(task, 0, {STOCK: ["yes"] * 100, one.entry.label: ["no"] * 100}, {})
    found = result(task, Targets(0.05), [one], asking, {"tokens_per_image": 36.0})
    assert one.verdict == "accepted" and "Careful" in found["answer"] and "right on 0.0 %" in found["answer"]


def test_agreement_counts_changed_answers_but_not_their_dress():
    one = candidate()
    task = Task("made", samples(4), None, lambda said, sample: False)
    asking = Asking([one], 0.5, True, 0.05)
    asking.block(task, 0, {STOCK: ["Yes", "a b", "x", "y"], one.entry.label: ["yes.", "a  b ", "x", "z"]}, {})
    assert (one.right, one.drop) == (3, 0.25) and one.low >= 0


def test_a_plan_that_fails_on_later_samples_is_left_out():
    one = candidate()
    asking = Asking([one], 0.05, False, 0.05)
    task = Task("made", samples(2), None, lambda said, sample: True)
    asking.block(task, 0, {STOCK: ["", ""], one.entry.label: ["", ""]}, {one.entry.label: "too large\n  try: less"})
    assert (one.verdict, one.why) == ("left out", "too large")


def test_slices_have_bounds_of_their_own():
    one = candidate()
    asking, _, task = asked([(one, range(0, 40, 2))], 1, drop=None, slices=("a", "b"))
    found = result(task, Targets(tokens=(9, "image")), [one], asking, {"tokens_per_image": 36.0})["rows"][0]["slices"]
    assert (found["a"]["drop"], found["b"]["drop"], found["a"]["n"]) == (pytest.approx(0.4), 0.0, 50)
    assert found["a"]["low"] < 0.4 < found["a"]["high"]


@pytest.mark.parametrize(
    ("failed", "says"),
    [("drop", "loses more than 5 points"), ("time", "brings the first token"), ("tokens", "comes to at most 4/image")],
)
def test_a_refusal_says_which_target_it_was(failed, says):
    one = candidate()
    one.end("refused", "x", failed)
    targets = Targets.parse("5pt", "0.1x", "<=4/image")
    found = result(
        Task("made", [], None, None), targets, [one], Asking([], 0.05, False, 0.05), {"tokens_per_image": 36.0}
    )
    assert found["answer"].startswith("Do not compress") and says in found["answer"] and "norm" in found["answer"]


def test_a_model_that_runs_no_plan():
    one = candidate(ratios=())
    one.end("left out", "no such layer")
    found = result(
        Task("made", [], None, None), Targets(0.1), [one], Asking([], 0.1, False, 0.05), {"tokens_per_image": None}
    )
    assert "no plan runs" in found["answer"] and "no such layer" in found["answer"]


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    task = stub.task(model)
    return replace(task, samples=list(task.samples) * 10)


def run(model, task, targets, plans, **more):
    options = {"block": 12, "batch": 6, "max_new_tokens": 3, "rounds": 2, **more}
    return advise(model, stub.Processor(), task, Targets.parse(*targets), plans_of(plans), **options)


def test_a_run_from_samples_to_a_plan(model, task):
    ticks = []
    plan, found = run(
        model, task, ("60pt", None, "<=9/image"), "norm:keep=9; norm:keep=18; norm:keep=1.0; norm:keep==99/image",
        tick=lambda *what: ticks.append(what),
    )  # fmt: skip
    rows = {row["label"]: row for row in found["rows"]}
    assert str(plan) == "norm:keep=9/image" == found["recommended"] and found["plan"] == plan.to_dict()
    assert rows["norm:keep=18/image"]["target_missed"] == "tokens" and "n" not in rows["norm:keep=18/image"]
    assert rows["norm:keep=100%"]["verdict"] == rows["norm:keep==99/image"]["verdict"] == "left out"
    assert "99" in rows["norm:keep==99/image"]["why"]
    chosen = found["rows"][0]
    assert chosen["tokens_per_image"] == chosen["tokens_over_layers"] == chosen["tokens_largest"] == 9
    assert chosen["n"] == found["protocol"]["samples_asked"] < found["protocol"]["samples_available"] == 60
    assert 0.3 < found["uncompressed"]["accuracy"] < 0.7  # half of the answers are the model's own
    assert chosen["drop"] == pytest.approx(found["uncompressed"]["accuracy"] - chosen["accuracy"])
    assert chosen["high"] <= 0.6 and found["uncompressed"]["tokens_per_image"] == 36
    assert {what for what, _, _ in ticks} == {"visual tokens", "first token", "answers"}
    assert all(done <= total for _, done, total in ticks) and ("first token", 6, 6) in ticks
    assert json.loads(json.dumps(found)) == found
    with compress(model, "norm", keep=9):
        pass  # nothing was left on the model


def test_the_answers_are_those_of_plain_runs(model, task):
    """Agreement, counted by hand."""
    _, found = run(model, task, (None, None, "<=9/image"), "random:keep=9", score="agreement", limit=12, seed=3)
    processor, changed = stub.Processor(), 0
    order = list(task.samples)
    random.Random(3).shuffle(order)
    for sample in order[:12]:
        batch = processor([sample])
        texts = []
        for plan in (None, "random:keep=9"):
            attached = compress(model, plan) if plan else None
            out = model.generate(**batch, max_new_tokens=3, do_sample=False)
            if attached is not None:
                attached.remove()
            texts.append(processor.batch_decode(out[:, batch["input_ids"].shape[1] :])[0])
        changed += texts[0] != texts[1]
    row = found["rows"][0]
    assert row["n"] == 12 and row["lost"] == changed and row["drop"] == pytest.approx(changed / 12)
    assert found["measure"] == "changed answers" and "accuracy" not in found["uncompressed"]


def test_between_layers_tokens_are_averaged_over_the_layers(model, task):
    plan, found = run(model, task, (None, None, "<=27/image"), "fastv:layer=2,keep=18; fastv:layer=2,keep=30", limit=12)
    rows = {row["label"].split("keep=")[1].split("/")[0]: row for row in found["rows"]}
    assert rows["18"]["tokens_per_image"] == 36 and rows["18"]["tokens_over_layers"] == 27  # 2 of 4 layers run on all
    assert rows["30"]["target_missed"] == "tokens" and plan is not None


@pytest.mark.parametrize(
    "targets", [("50pt", None, "<=2/image"), ("50pt", "0.0001x", None), ("50pt", "0.0001ms", None)]
)
def test_targets_that_no_plan_can_meet_cost_no_questions(model, task, targets):
    plan, found = run(model, task, targets, "norm:keep=9; norm:keep=4")
    assert plan is None and found["recommended"] is None and found["answer"].startswith("Do not compress")
    assert found["protocol"]["samples_asked"] == found["protocol"]["plans_asked"] == 0


def test_a_strict_target_is_refused_or_stays_open(model, task):
    plan, found = run(model, task, ("0.1pt", None, "<=1/image"), "norm:keep=1")
    assert plan is None and found["rows"][0]["verdict"] in ("refused", "undecided")
    assert found["rows"][0]["n"] <= 60


@pytest.mark.parametrize(("ratio", "meets"), [(0.5, True), (1.2, False)])
def test_a_drop_alone_asks_for_a_plan_that_saves_time(model, task, monkeypatch, ratio, meets):
    def timed(model, processor, task, found, *more):
        for one in found:
            one.ratios, one.seconds = [ratio], [ratio]
        return 1.0

    monkeypatch.setattr("foveate.bench.advice.advise.time_first_token", timed)
    plan, found = run(model, task, ("70pt", None, None), "norm:keep=9")
    assert (plan is not None) is meets and ("faster than uncompressed" in found["answer"]) is not meets


def test_nothing_to_advise_on(model, task):
    with pytest.raises(UnsupportedError, match="nothing"):
        run(model, replace(task, samples=[]), ("1pt", None, None), "norm:keep=9")


HAS_WEIGHTS = (Path(testbed.__file__).parent / "model" / "model.safetensors").exists()


@pytest.mark.skipif(not HAS_WEIGHTS, reason="this checkout has no weights")
def test_yes_and_no_on_the_testbed():
    from foveate.bench.tasks import testbed_task

    model, processor = testbed.load()
    few = testbed_task(["attribute", "existence"], 16)
    options = {"block": 32, "rounds": 1, "max_new_tokens": 4}

    def said(targets, plans, **more):
        return advise(model, processor, few, Targets.parse(*targets), plans_of(plans), **options, **more)

    plan, found = said(("20pt", None, "<=192/image"), "divprune:keep=128; resize:keep=9")
    rows = {row["label"]: row for row in found["rows"]}
    assert str(plan) == "divprune:keep=128/image" and rows["divprune:keep=128/image"]["n"] == 32
    assert rows["resize:keep=9/image"]["verdict"] == "refused", "a picture of 9 tokens shows neither colours nor shapes"
    plan, found = said(("20pt", "0.001x", None), "divprune:keep=128")
    assert plan is None and "The fastest: divprune:keep=128/image" in found["answer"]
