"""Claims and verdicts: rules, intervals, judges on made-up outcomes that must come out either way, and probes on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import tiny
from bench import stub
from foveate.attach import compress
from foveate.bench import findings
from foveate.bench.claims import choice, general, inside, plans
from foveate.bench.claims.claim import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Span, above, below, each, every, sized
from foveate.bench.claims.evidence import DETAIL, READING, SIMPLE, STOCK_KEY, Evidence, Outcomes
from foveate.bench.claims.looks import seen, skipping
from foveate.bench.claims.probes import FOUND, LOOKED, Probes, _needles, ranked_key, skip_key, tower
from foveate.bench.grid.ledger import Ledger
from foveate.bench.grid.results import STOCK, Cell, Entry, Place, build
from foveate.bench.runner import prefill, prepared
from foveate.bench.stats import paired
from foveate.errors import UnsupportedError
from foveate.plan import Plan

SLICES = (*SIMPLE, *DETAIL, "later-turns")
EACH = 20  # samples of a slice
FAIR = (
    "fastervlm", "vtc_cls", "fopru", "hired", "hiprune", "globalcom2", "flowcut", "divprune", "todre", "floc", "trim",
    "simignore",
)  # fmt: skip
KEEPS = (192, 32)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("foveate.bench.claims.evidence.DRAWS", 1500)


def made(share, once=None):
    """A grid whose rows have given accuracies. share: (method, keep, slice) -> share of right answers."""
    samples = [
        {"id": f"{s}-{i}", "slice": s, "question": "", "answer": "", "place": 0} for s in SLICES for i in range(EACH)
    ]
    rows, cells = [(Entry(STOCK, None, STOCK), Place())], {}

    def fill(method, keep, at):
        right = [(i % EACH) < round(EACH * share(method, keep, samples[i]["slice"])) for i in at]
        text = ["x" if ok else "y" for ok in right]
        return Cell(at, text, right, len(at), 576 * len(at), (keep or 576) * len(at), float((keep or 576) * len(at)))

    whole = list(range(len(samples)))
    cells[STOCK_KEY] = fill(STOCK, None, whole)
    for name in ("random", "pool", "resize", "llavolta", *FAIR):
        for keep in KEEPS:
            plan = Plan.of(name, keep)
            entry = Entry(str(plan), plan, name, str(keep), plan.steps[0].stage, 0 if name == "random" else None)
            rows.append((entry, Place()))
            cells[Place().key(entry.label)] = fill(name, keep, whole)
    if once is not None:
        late = [i for i in whole if samples[i]["slice"] == "later-turns"]
        for entry, _ in [rows[0], *(row for row in rows if row[0].method in ("trim", "simignore"))]:
            place = Place("clean", "once")
            cell = fill(entry.method, int(entry.keep or 0) or None, late)
            if entry.method != STOCK:
                cell.right = [i % EACH < round(EACH * once) for i in late]
            rows.append((entry, place))
            cells[place.key(entry.label)] = cell
    return build({}, samples, rows, cells)


def evidence(share, **more):
    return Evidence({"grid": Outcomes.of(made(share, more.pop("once", None)))}, more, 5)


def verdict(number, found):
    return findings._judge(next(c for c in findings.CLAIMS if c.id == number), found).verdict


# -- rules -------------------------------------------------------------------------------------------------------------


def test_a_verdict_needs_the_whole_interval_on_one_side():
    assert above(Span(0.1, 0.02, 0.2)) == SUPPORTED
    assert above(Span(0.1, -0.02, 0.2)) == UNDECIDED
    assert above(Span(-0.1, -0.2, -0.02)) == NOT_SUPPORTED
    assert above(Span(0.0, 0.0, 0.0)) == UNDECIDED
    assert below(Span(0.1, 0.02, 0.2), 0.3) == SUPPORTED
    assert below(Span(0.4, 0.35, 0.5), 0.3) == NOT_SUPPORTED
    assert sized(Span(0.01, 0.005, 0.015), 0.02) == NOT_SUPPORTED, "there, but smaller than claimed"
    assert sized(Span(0.03, 0.01, 0.05), 0.02) == SUPPORTED
    assert every([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert every([UNDECIDED, NOT_SUPPORTED]) == NOT_SUPPORTED
    assert each([SUPPORTED, NOT_SUPPORTED]) == UNDECIDED
    assert each([SUPPORTED, SUPPORTED]) == SUPPORTED


def test_intervals_of_differences_are_those_of_paired_samples():
    draw = np.random.default_rng(3)
    one, other = draw.random(400) < 0.7, draw.random(400) < 0.6
    table = Outcomes(["a"] * 400, {"one": one.astype(float), "other": other.astype(float)})
    both = table.accuracy(["one", "other"])
    span, expected = Evidence().span(both[:, 0] - both[:, 1]), paired(one, other)
    assert span.value == pytest.approx(expected["difference"])
    assert [span.low, span.high] == pytest.approx([expected["low"], expected["high"]], abs=0.01)
    wide = Evidence(level=0.999).span(both[:, 0] - both[:, 1])
    assert wide.low < span.low and wide.high > span.high


def test_resampling_keeps_slices_as_large_as_they_are():
    table = Outcomes(["a"] * 5 + ["b"] * 7, {"x": np.ones(12)})
    assert np.allclose(table.weights[:, :5].sum(1), 5) and np.allclose(table.weights[:, 5:].sum(1), 7)
    assert (table.weights[0] == 1).all() and (table.weights[1:] != 1).any()


def test_every_claim_says_what_it_needs_and_how_it_is_judged():
    assert len({claim.id for claim in findings.CLAIMS}) == len(findings.CLAIMS) >= 28
    for claim in findings.CLAIMS:
        assert "upported" in claim.check and claim.text.endswith(".") and claim.sources and claim.needs
        found = findings._judge(claim, Evidence(depth=5))
        assert found.verdict == UNDECIDED and found.why.startswith("Not judged"), "nothing was measured"


# -- judges on made-up grids -------------------------------------------------------------------------------------------


def level(value):
    return lambda method, keep, slice: value


def test_baselines_that_beat_many_methods_and_such_that_do_not():
    good = evidence(lambda method, keep, slice: {STOCK: 1.0, "random": 0.8, "resize": 0.9}.get(method, 0.5))
    bad = evidence(lambda method, keep, slice: {STOCK: 1.0, "random": 0.1, "resize": 0.1}.get(method, 0.8))
    for number in ("Q1", "Q5"):
        assert (verdict(number, good), verdict(number, bad)) == (SUPPORTED, NOT_SUPPORTED)
    assert "100.0 %" in findings._judge(findings.chosen(["Q1"])[0], good).why


def test_no_best_method_needs_every_method_to_be_beaten_somewhere():
    def turns(method, keep, slice):  # each is bad in one slice, which others are not bad in
        return 1.0 if method not in FAIR or SLICES[FAIR.index(method) % len(SLICES)] != slice else 0.1

    assert verdict("Q2", evidence(turns)) == SUPPORTED
    best = evidence(lambda method, keep, slice: 1.0 if method == "divprune" else turns(method, keep, slice))
    found = findings._judge(findings.chosen(["Q2"])[0], best)
    assert found.verdict == UNDECIDED and found.numbers["unbeaten"] == ["divprune"]


def test_reading_is_hit_hardest_or_not():
    hard = evidence(lambda m, k, s: 0.95 if m == STOCK else 0.2 if s in READING else 0.8)
    soft = evidence(lambda m, k, s: 0.95 if m == STOCK else 0.2 if s == "count" else 0.8)
    assert (verdict("Q3", hard), verdict("Q3", soft)) == (SUPPORTED, NOT_SUPPORTED)


def test_squares_add_up_and_find_the_factor():
    lost = np.random.default_rng(0).random((3, 4, 2, 5))
    parts = general.squares(lost)
    assert np.allclose(sum(parts.values()), 1)
    only = general.squares(np.broadcast_to(np.array([0.1, 0.5])[None, None, :, None], (1, 4, 2, 5)))
    assert only["budget"] == pytest.approx(1)
    assert verdict("Q4", evidence(lambda m, k, s: 1.0 if k is None or k == 192 else 0.3)) == SUPPORTED
    assert verdict("Q4", evidence(lambda m, k, s: 1.0 if k is None or s != "count" else 0.3)) == NOT_SUPPORTED


def test_simple_and_difficult_samples():
    def split(method, keep, slice):  # what a smaller picture gets right, methods get right; of the rest, half
        return {STOCK: 1.0, "resize": 0.5}.get(method, 0.75)

    assert verdict("Q6", evidence(split)) == SUPPORTED
    assert verdict("Q6", evidence(lambda m, k, s: {STOCK: 1.0, "resize": 0.05}.get(m, 0.75))) == NOT_SUPPORTED


def test_pooling_at_small_and_at_large_cost():
    assert verdict("Q7", evidence(lambda m, k, s: 1.0)) == SUPPORTED
    assert verdict("Q7", evidence(lambda m, k, s: 0.6 if m == "pool" else 1.0)) == SUPPORTED, "the paper's place counts"
    assert verdict("Q7", evidence(lambda m, k, s: 0.6 if m == "llavolta" and s in SIMPLE else 1.0)) == NOT_SUPPORTED


def test_better_than_uncompressed_must_outlast_the_number_of_looks():
    few = evidence(lambda m, k, s: 0.75 if (m, k) == ("divprune", 192) and s == "count" else 0.7)
    many = evidence(lambda m, k, s: 0.9 if (m, k) == ("divprune", 192) else 0.7)
    assert (verdict("Q8", few), verdict("Q8", many)) == (UNDECIDED, SUPPORTED)
    assert general._at_most(0, 0, 10**6, 0.001) < 0.001 < general._at_most(0, 0, 200, 0.001)


def test_later_turns_are_compared_with_tokens_of_the_first_turn():
    def share(method, keep, slice):
        return 1.0 if method == STOCK else 0.5 if slice in (*DETAIL, "later-turns") else 0.95

    assert verdict("Q9", evidence(share, once=0.2)) == SUPPORTED
    assert verdict("Q9", evidence(level(1.0), once=1.0)) == NOT_SUPPORTED
    assert verdict("Q9", evidence(share)) == UNDECIDED, "nothing was asked with tokens of the first turn"
    found = findings._judge(findings.chosen(["Q9"])[0], evidence(level(1.0), once=0.6))
    assert found.numbers["once_less_turn"]["value"] == pytest.approx(-0.4)


def test_criteria_are_compared_as_groups():
    def share(weak, far):
        return lambda m, k, s: 1.0 if k in (None, 192) else far if m in weak else 0.9

    assert verdict("Q20", evidence(share(choice.IMPORTANCE, 0.5))) == SUPPORTED
    assert verdict("Q20", evidence(share((*choice.DIVERSITY, *choice.RELEVANCE), 0.5))) == NOT_SUPPORTED
    assert verdict("Q20", evidence(share((*choice.IMPORTANCE, *choice.RELEVANCE), 0.5))) == UNDECIDED


def test_several_blocks_of_the_tower_against_one():
    alike = np.broadcast_to(np.full((3, 3), 0.1) + 0.9 * np.eye(3), (20, 3, 3)).tolist()
    same = np.ones((20, 3, 3)).tolist()

    def share(m, k, s):
        return 0.5 if m == "fastervlm" and k == 32 else 0.9

    assert verdict("Q15", evidence(share, looks={"tower": alike})) == SUPPORTED
    assert verdict("Q15", evidence(share, looks={"tower": same})) == NOT_SUPPORTED


def test_accuracy_and_time():
    names = [str(Plan.of(name, 32)) for name in FAIR]

    def time(order):
        return {
            name: {
                "method": name.split(":")[0],
                "full": 576.0,
                "tokens": 64.0,
                "flops": 0.2,
                "prefill": 0.3,
                "whole": w,
                "choosing": 0.15,
            }
            for name, w in zip(names, order, strict=True)
        }

    found = evidence(lambda m, k, s: 0.1 + 0.06 * FAIR.index(m) if m in FAIR else 1.0)
    found.probes["time"] = time([0.9 - 0.05 * i for i in range(12)])
    assert verdict("Q12", found) == NOT_SUPPORTED, "the more accurate, the faster"
    found.probes["time"] = time([0.3 + 0.05 * i for i in range(12)])
    assert (verdict("Q12", found), verdict("Q53", found), verdict("Q58", found)) == (SUPPORTED,) * 3
    found.probes["time"] = {k: v | {"whole": 0.12, "choosing": 0.001} for k, v in found.probes["time"].items()}
    assert (verdict("Q53", found), verdict("Q58", found)) == (NOT_SUPPORTED,) * 2


def test_places_without_bias_are_not_taken_for_biased():
    draw = np.random.default_rng(1)
    noise = draw.normal(1, 0.3, (30, 9)).clip(0.1)
    fair = {name: (noise / noise.sum(1, keepdims=True)).tolist() for name in ("[CLS]", "layer 1")}
    tilted = noise * np.linspace(0.5, 1.5, 9)
    bent = {name: (tilted / tilted.sum(1, keepdims=True)).tolist() for name in fair}
    one, other = (Evidence(probes={"place": some}) for some in (fair, bent))
    assert verdict("Q17", other) == SUPPORTED
    assert verdict("Q17", one) != SUPPORTED
    assert inside._apart(np.broadcast_to(noise.mean(0), (1, 2, 9)))[0] > 0, "of the same half it would differ"


def test_the_rank_of_maps_is_tested_exactly():
    def found(ranks, drops):
        right = {skip_key(i): (np.arange(100) >= 100 * drop).astype(float) for i, drop in enumerate(drops)}
        table = Outcomes(["a"] * 100, right | {STOCK_KEY: np.ones(100)})
        return Evidence({"ranked": table}, {"looks": {"rank": [ranks] * 3}}, 5)

    assert verdict("Q36", found([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])) == SUPPORTED
    assert verdict("Q36", found([5, 4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4, 0.5])) == NOT_SUPPORTED
    assert verdict("Q36", found([1, 2, 3, 4, 5], [0.1, 0.3, 0.2, 0.5, 0.4])) == UNDECIDED


# -- plans -------------------------------------------------------------------------------------------------------------


def test_schedules_of_every_shape_run_on_the_same_number_of_tokens():
    for mean in (0.4, 0.6):
        for name, plan in plans.shapes(mean, 5).items():
            shares = getattr(plan.steps[0].method, "shares", ())
            if name == "rising":
                assert plan.steps[0].method.layer == 5 - round(5 * mean)
            else:
                assert sum(shares) == pytest.approx(5 * mean, abs=0.01)
                assert list(shares) == sorted(shares, reverse=True)


def test_a_late_picture_runs_from_its_layer_to_the_end(model, task):
    fed = prepared(model, stub.Processor()(task.samples[:2]))
    with compress(model, plans.late(1)) as run:
        found = seen(model, fed)
    assert [image.average for image in run.report.images] == [27.0, 27.0], "36 tokens in three of four layers"
    assert [found.layers[i][0].shape[2] for i in range(4)] == [found.valid.shape[1] - 36, *[found.valid.shape[1]] * 3]


def test_blind_choices_do_not_see_the_question(model, task):
    fed = prepared(model, stub.Processor()(task.samples[:2]))
    plan = Plan.of(plans.blind(), 9)
    kept = []
    for change in (0, 5):
        other = fed | {
            "input_ids": torch.where(fed["input_ids"] >= tiny.TEXT, fed["input_ids"] + change, fed["input_ids"])
        }
        with compress(model, plan) as run:
            prefill(model, other)
        kept.append([image.kept.tolist() for image in run.report.images])
    assert kept[0] == kept[1] and all(len(one) == 9 for one in kept[0])


# -- probes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    return stub.task(model)


@pytest.fixture(scope="module")
def here(model, task):
    return seen(model, prepared(model, stub.Processor()(task.samples[:4])))


def test_attention_that_is_worked_out_again_is_the_models(model, task, here):
    fed = prepared(model, stub.Processor()(task.samples[:4]))
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model(**fed, output_attentions=True, output_hidden_states=True)
    finally:
        model.set_attn_implementation("sdpa")
    for row in range(4):
        asks = here.asks(row)
        assert torch.allclose(here.paid(1, row, asks), maps.attentions[1][row][:, asks], atol=1e-5)
        text, image = here.mass(row)
        assert np.allclose(np.add(text, image), 1, atol=1e-5)
    for i in range(3):
        assert torch.allclose(here.states[i][0][here.valid], maps.hidden_states[i][here.valid], atol=1e-5)


def test_effective_rank_lies_between_one_and_the_length(here):
    assert all(1 <= rank <= int(here.valid[0].sum()) for rank in here.rank(0))


def test_rank_correlations_have_ones_on_the_diagonal(here):
    for found in (here.alike(0), here.blocks_alike(0)):
        assert np.allclose(np.diag(found), 1) and np.allclose(found, found.T) and (np.abs(found) <= 1 + 1e-6).all()


def test_skipping_changes_one_layer_for_pictures_only(model, task, here):
    fed = prepared(model, stub.Processor()(task.samples[:4]))
    with skipping(model, 1, here.image):
        other = seen(model, fed)
    before, after = other.states[2][0], here.states[1][0]
    assert torch.equal(before[here.image], after[here.image]), "visual tokens enter layer 2 as they entered layer 1"
    text = here.valid & ~here.image
    assert torch.allclose(before[text], here.states[2][0][text], atol=1e-5), "text read them as ever"


def test_probes_note_what_they_find_and_go_on(model, task, tmp_path):
    made = []
    for _ in range(2):
        with Ledger(tmp_path / "p.jsonl", {}) as ledger:
            probes = Probes(model, stub.Processor(), task, ledger, samples=4, batch=4, rounds=2, tick=made.append)
            looks, stable, ranked = probes.looks(), probes.stable(), probes.ranked()
            few = [Plan.of("norm", 9), Plan.of("fastv", 9)]
            costs, times = probes.costs([*few, Plan.of(plans.blind(), 9)]), probes.times(few)
    assert made.count("looks") == 1 and len(made) == len(set(made))
    assert np.array(looks["layers"]).shape[1:] == (4, 4) and len(looks["mass"]["text"]) == len(looks["layers"])
    assert all(0 < value <= 1 for values in stable.values() for value in values)
    assert set(ranked["right"]) == {
        *(ranked_key(name, k) for name in (tower(), *(f"layer {i}" for i in range(4))) for k in LOOKED),
        *map(skip_key, range(4)), STOCK_KEY,
    }  # fmt: skip
    assert all(len(values) == len(task.samples) for values in ranked["right"].values())
    assert costs["norm:keep=9/image"]["tokens"] == 9 < costs["fastv:keep=9/image"]["tokens"]
    assert costs["norm:keep=9/image"]["flops"] < costs["fastv:keep=9/image"]["flops"] < 1
    assert set(times) == {str(plan) for plan in few} and all(row["choosing"] > 0 for row in times.values())


def test_times_of_the_grid_are_taken_if_all_rows_have_them():
    part = {"over": 0.5}
    rows = [{"label": name, "time": {"prefill": part, "total": part, "selection": part}} for name in "ab"]
    assert findings.given(rows) == {name: {"prefill": 0.5, "whole": 0.5, "choosing": 0.5} for name in "ab"}
    assert findings.given([*rows, {"label": "c"}]) == {}


def test_given_scores_choose_as_the_method_that_reads_them(model, task):
    samples = [s for s in task.samples if len(s.images) == 1][:3]
    fed = prepared(model, stub.Processor()(samples))
    found, plan = seen(model, fed), Plan.of("fastervlm", 9)
    scores = list(found.cls(max(found.blocks)))
    reports = []
    for one in (plan, Plan.of(plans.Ranked(iter(scores)), 9)):
        with compress(model, one) as run:
            prefill(model, fed)
        reports.append([image.kept.tolist() for image in run.report.images])
    assert reports[0] == reports[1]


def test_needles_are_where_the_text_is():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    found = _needles(6)
    assert [sample.slice for sample, _ in found] == ["reading-short"] * 3 + ["small-detail"] * 3
    for sample, patches in found:
        rows, columns = {p // 24 for p in patches}, {p % 24 for p in patches}
        assert len(patches) >= len(sample.answer) and max(rows) - min(rows) <= 3 and max(columns) - min(columns) <= 8
        assert len(patches) < FOUND
    again = _needles(6)
    assert [(s.question, p) for s, p in found] == [(s.question, p) for s, p in again]


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_everything_measured_on_a_tiny_model(model, task, tmp_path):
    claims = findings.chosen(["Q22", "Q28", "Q29", "Q31", "Q36", "Q37", "Q41", "Q83"])
    scale = findings.Scale(samples=3, degraded=2, looks=3, rounds=2)
    found = findings.measure(
        model,
        stub.Processor(),
        claims,
        None,
        lambda name: tmp_path / f"{name}.jsonl",
        scale=scale,
        task=lambda limit: replace(task, samples=sorted(task.samples[:limit], key=lambda s: s.slice)),
        batch=4,
    )
    assert set(found.tables) == {"extra", "harsh", "ranked"} and found.depth == 4
    result = findings.result(model, claims, found, None, scale, "foveate bench findings")
    assert json.loads(json.dumps(result)) == result
    refused = [row["id"] for row in result["rows"] if row["why"].startswith("Not judged")]
    assert set(refused) <= {"Q36"}, "layers may all cost the same"
    page = findings.markdown(result)
    assert all(f"## {claim.id}" in page and claim.check in page for claim in claims)


def test_a_correction_can_only_make_verdicts_undecided():
    found = evidence(lambda m, k, s: {STOCK: 1.0, "random": 0.4, "resize": 0.6}.get(m, 0.4 + 0.04 * (len(m) % 7)))
    rows = findings.judged(findings.chosen(None), found)
    assert {row["corrected"] for row in rows if row["corrected"] != row["verdict"]} <= {UNDECIDED}
    assert [row["id"] for row in rows] == [claim.id for claim in findings.CLAIMS]


def test_unknown_claims_are_refused():
    with pytest.raises(UnsupportedError, match="Q999"):
        findings.chosen(["Q1", "Q999"])


def test_the_command_writes_a_result_and_a_page(tmp_path, monkeypatch, model):
    from foveate.bench.report import report
    from foveate.cli import findings as command
    from foveate.cli import tools

    monkeypatch.setattr(command, "load_testbed", lambda device, dtype: (model, stub.Processor()))
    monkeypatch.setattr(report, "check", lambda kind, result: None)
    app = typer.Typer()
    app.command()(command.findings)
    grid, out, page = tmp_path / "grid.json", tmp_path / "found" / "findings.json", tmp_path / "page.md"
    head = {
        "bench": "grid",
        "schema": 1,
        "command": "foveate bench",
        "identity": "0",
        "protocol": {},
        "environment": {},
    }
    grid.write_text(json.dumps(made(lambda m, k, s: 1.0 if m in (STOCK, "resize") else 0.5) | head))
    page.write_text(f"before\n{findings.START}\nold\n{findings.END}\nafter\n")
    words = ["--results", str(grid), "--out", str(out), "--write", str(page), "--claims", "Q5"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["id"], row["verdict"]) == ("Q5", SUPPORTED)
    assert (
        page.read_text().startswith("before\n")
        and "| [Q5](#q5) |" in page.read_text()
        and "old" not in page.read_text()
    )
    assert tools.names_of("Q1, Q5") == ["Q1", "Q5"]
    with pytest.raises(UnsupportedError, match="no file"):
        CliRunner().invoke(app, ["--results", str(tmp_path / "no.json"), "--claims", "Q5"], catch_exceptions=False)
