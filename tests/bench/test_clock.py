"""The time bench runs and reports what it should. No number of seconds is tested: timing belongs to benchmarks."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

import tiny
from foveate import compress
from foveate.bench.inside import STEPS
from foveate.bench.runner import STOCK, Entry, prefill
from foveate.bench.times import clock, subject
from foveate.bench.times.breakeven import Curve, break_even, measure_break_even, shrunk
from foveate.bench.times.clock import entries_of, markdown, measure_time
from foveate.bench.times.shapes import build, prompts_of
from foveate.bench.times.subject import KINDS, Setting, Subject, caught, decode, oracle, tried
from foveate.cli.clock import clock as command
from foveate.errors import FoveateError, UnsupportedError
from foveate.plan import Plan
from foveate.stages.evict import bytes_of

TEXT = 5
BEFORE = ("stride", "fastervlm", "resize", "tome_tower")  # at the connector, and before and inside the tower
INSIDE = ("fastv", "snapkv")


def prompts_for(family, model):
    """Prompts of equal length for a tiny model; a smaller side is its smaller picture, if it has one."""
    small = "b" if family.startswith("qwen") else "a"

    def made(batch, images, share):
        return tiny.inputs(family, model, [[("image", "a" if share == 1.0 else small)] * images + [TEXT]] * batch)

    return made


def ready(family):
    """A tiny model that has put on the hooks with which it reads its own states."""
    model = tiny.build(family)
    prefill(model, prompts_for(family, model)(1, 1, 1.0))
    return model


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def model():
    return ready("llava")


@pytest.fixture(scope="module")
def result(model):
    ticks: dict[str, list] = {}
    before = hooks(model)
    entries = [*entries_of((*BEFORE, *INSIDE), [0.25]), Entry("strict", Plan.of("norm", "=99/image"), "norm", "=99")]
    found = measure_time(
        model,
        prompts_for("llava", model),
        entries,
        batches=(1, 2),
        new_tokens=3,
        rounds=2,
        tick=lambda what, done, total: ticks.setdefault(what, []).append((done, total)),
    )
    assert hooks(model) == before, "nothing is left on the model"
    for each in ticks.values():
        total = each[0][1]
        assert each == [(i, total) for i in range(1, total + 1)], "a bar that ends where it should"
    return found


def rows_of(result, batch):
    return {row["method"]: row for row in result["rows"] if row["batch"] == batch}


def test_result_is_plain_data_of_the_schema(result, model):
    assert json.loads(json.dumps(result)) == result
    assert (result["bench"], result["schema"], result["rounds"]) == ("time", 1, 2)
    facts = {"class": "LlavaForConditionalGeneration", "weights": "trained", "layers": 4, "width": tiny.HIDDEN}
    assert facts.items() <= result["model"].items()
    assert result["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert [row["method"] for row in result["rows"]] == [STOCK, *BEFORE, *INSIDE, "norm"] * 2
    for row in result["rows"]:
        assert (row["visual_tokens"], row["text_tokens"], row["new_tokens"]) == (36, 1 + TEXT, 3)
    stages = {row["method"]: row["stage"] for row in result["rows"]}
    assert stages == dict(
        zip(
            [STOCK, *BEFORE, *INSIDE, "norm"],
            ["", "connector", "connector", "input", "encoder", "layers", "cache", "connector"],
            strict=True,
        )
    )


def test_a_row_holds_every_part_that_applies_to_it(result):
    for row in (row for row in result["rows"] if row["method"] != "norm"):
        time, stock = row["time"], row["method"] == STOCK
        parts = {*KINDS} | (set() if stock else {"selection"}) | ({"oracle"} if row["method"] in BEFORE else set())
        assert {name for name, value in time.items() if isinstance(value, dict)} == parts
        for part in parts:
            low, high = time[part]["quartiles"]
            assert time[part]["seconds"] > 0 and 0 < low <= time[part]["over"] <= high
        assert ("efficiency" in time) == (row["method"] in BEFORE)
        assert row["prompts_per_second"] == pytest.approx(row["batch"] / time["total"]["seconds"])
        assert time["peak_memory"] is None and time["peak_over"] is None, "there is no GPU"
    assert {kind: len(each) for kind, each in result["control"].items()} == dict.fromkeys(KINDS, 2)


def test_the_uncompressed_model_is_what_the_others_are_held_against(result):
    for batch in (1, 2):
        time = rows_of(result, batch)[STOCK]["time"]
        assert all(time[kind]["over"] == 1.0 for kind in KINDS) and time["cache_over"] == 1.0


def test_cache_bytes_are_those_of_the_tokens_that_are_left(result, model):
    text = model.config.text_config
    column = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * (tiny.HIDDEN // text.num_attention_heads)
    for batch in (1, 2):
        rows = rows_of(result, batch)
        assert rows[STOCK]["time"]["cache_bytes"] == batch * column * (1 + 36 + TEXT)
        for method in BEFORE:
            assert rows[method]["time"]["cache_bytes"] == batch * column * (1 + 9 + TEXT)
            assert rows[method]["time"]["cache_over"] == pytest.approx(15 / 42)
        for method in INSIDE:
            assert rows[method]["time"]["cache_bytes"] < rows[STOCK]["time"]["cache_bytes"]


def test_a_plan_that_is_refused_is_a_row_with_the_reason(result):
    for batch in (1, 2):
        row = rows_of(result, batch)["norm"]
        assert "99" in row["error"] and "time" not in row and "prompts_per_second" not in row
    assert "99" in result["break_even"][-1]["why"] and result["break_even"][-1]["visual_tokens"] is None


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("method", ["stride", "pool"])
def test_the_oracle_is_the_stock_decoder_on_the_kept_tokens(family, positions, method):
    model = ready(family)
    before = hooks(model)
    fed, plan = prompts_for(family, model)(2, 1, 1.0), Plan.of(method, 0.25, positions)
    one = Subject(Setting(model, None, None, (), 1, None), fed, plan, 2)
    with compress(model, plan) as run, torch.no_grad():
        compressed = prefill(model, fed)
        length = run.report.sequence_out
    assert length < fed["input_ids"].shape[1]
    assert one.kept["inputs_embeds"].shape[:2] == (2, length)
    assert hooks(model) == before, "the oracle runs without any of ours"
    out, logits = oracle(model, one.kept)
    assert out.past_key_values.get_seq_length() == length
    assert bytes_of(out.past_key_values) == one.cache_bytes == bytes_of(compressed.past_key_values)
    torch.testing.assert_close(logits, compressed.logits)
    again, _ = oracle(model, one.kept)
    assert again.past_key_values.get_seq_length() == length, "each time a fresh cache"


@pytest.mark.parametrize("plan", ["fastv:keep=0.25", "snapkv:keep=8", "stride:keep=0.5 > fastv:keep=0.5"])
def test_plans_inside_the_language_model_have_no_oracle(model, plan):
    one = Subject(Setting(model, None, None, (), 1, None), prompts_for("llava", model)(1, 1, 1.0), Plan.of(plan), 2)
    assert one.kept is None and "oracle" not in one.kinds


def test_hooks_are_gone_after_an_error(model):
    fed, plan, before = prompts_for("llava", model)(1, 1, 1.0), Plan.of("stride", 0.5), hooks(model)
    one = Subject(Setting(model, None, None, (), 1, None), fed, plan, 2)
    for kind in one.kinds:
        with pytest.raises(ZeroDivisionError), one.job(kind)():
            raise ZeroDivisionError
    with pytest.raises(FoveateError, match="99"):
        Subject(Setting(model, None, None, (), 1, None), fed, Plan.of("stride", "=99/image"), 2)
    assert hooks(model) == before


def test_total_is_exactly_the_new_tokens(model, monkeypatch):
    fed, made = prompts_for("llava", model)(2, 1, 1.0), []
    stock = model.generate
    monkeypatch.setattr(model, "generate", lambda **k: made.append(stock(**k)) or made[-1])
    Subject(Setting(model, None, None, (), 1, None), fed, Plan.of("stride", 0.5), 4)
    assert [out.shape[1] - fed["input_ids"].shape[1] for out in made] == [4]
    monkeypatch.setattr(model, "generate", lambda **k: stock(**k)[:, :-1])
    with pytest.raises(UnsupportedError, match="3 tokens instead of 4"):
        Subject(Setting(model, None, None, (), 1, None), fed, None, 4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("plan", ["stride:keep=0.5", "h2o:keep=8"])
def test_steps_that_are_timed_are_those_that_generate_makes(family, plan):
    model = tiny.build(family)
    fed = prompts_for(family, model)(2, 1, 1.0)
    with compress(model, plan), torch.no_grad():
        said = model.generate(**fed, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False)
        out = prefill(model, fed)
        with caught(model) as calls:
            decode(model, out)
    steps = torch.cat([call["input_ids"] for call in calls], 1)
    assert torch.equal(steps, said[:, fed["input_ids"].shape[1] :])


def test_prompts_of_unequal_length_are_refused(model):
    def unequal(batch, images, share):
        return tiny.inputs("llava", model, [[("image", "a"), TEXT + i] for i in range(batch)])

    with pytest.raises(UnsupportedError, match="unequal length"):
        measure_time(model, unequal, [], batches=(2,), new_tokens=1, rounds=1)


def test_what_does_not_fit_into_memory_is_a_row(model, monkeypatch):
    made = subject.Subject

    def full(setting, fed, plan, new_tokens):
        if len(fed["input_ids"]) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return made(setting, fed, plan, new_tokens)

    monkeypatch.setattr(clock, "Subject", full)
    options = {"batches": (1, 2), "new_tokens": 1, "rounds": 1, "sizes": ()}
    found = measure_time(model, prompts_for("llava", model), entries_of(["stride"], [0.5]), **options)
    assert ["time" in row for row in found["rows"]] == [True, True, False, False] and found["break_even"] == []
    assert found["rows"][2]["error"] == "CUDA out of memory"
    assert "uncompressed model does not run" in found["rows"][3]["error"]
    assert "`uncompressed` at batch 2 is not measured: CUDA out of memory." in markdown(found)


def test_bugs_are_not_taken_for_refusals():
    with pytest.raises(ZeroDivisionError):
        tried(lambda: 1 / 0)


def test_more_plans_than_a_group_holds(model, monkeypatch):
    monkeypatch.setattr(clock, "GROUP", 2)
    options = {"batches": (1,), "new_tokens": 1, "rounds": 1, "sizes": ()}
    found = measure_time(model, prompts_for("llava", model), entries_of(["stride", "norm", "pool"], [0.5]), **options)
    assert all("time" in row for row in found["rows"]) and len(found["control"]["prefill"]) == 2


def test_settled_methods_are_measured_once():
    assert [(e.method, e.keep) for e in entries_of(["ima", "stride"], [0.5, 9])] == [
        ("ima", ""),
        ("stride", "0.5"),
        ("stride", "9"),
    ]


# -- break-even --------------------------------------------------------------------------------------------------------


def solved(tokens, saved, stock=None):
    """Break-even of made-up savings, a list of rounds for each number of tokens."""
    stock = stock or [10.0] * len(tokens)
    mine = [[time - s for s in each] for time, each in zip(stock, saved, strict=True)]
    return break_even(tokens, [[time] * len(each) for time, each in zip(stock, saved, strict=True)], mine)


def test_break_even_is_where_the_line_meets_zero():
    tokens, why = solved([100, 400], [[-1.0] * 3, [2.0] * 3])
    assert tokens == pytest.approx(200)
    assert why.startswith("line") and "-1e+03 ms at 100" in why and "200 to 200" in why
    assert "smallest" not in why and "largest" not in why


def test_break_even_is_where_the_parabola_stays_above_zero():
    sizes = [50, 100, 200, 400]
    tokens, why = solved(sizes, [[(n - 20) * (n - 120) * 1e-4] * 2 for n in sizes])
    assert tokens == pytest.approx(120) and why.startswith("parabola") and "120 to 120" in why
    assert solved(sizes, [[n * n * 1e-4 + 0.1] for n in sizes])[0] == 0, "above zero everywhere"
    assert solved(sizes, [[n * n * 1e-4 + n * 1e-3] for n in sizes])[0] == pytest.approx(0, abs=1e-6)


def test_a_curve_that_would_bend_down_is_a_line():
    tokens, why = solved([100, 200, 300], [[-1.0], [0.5], [1.0]])
    assert why.startswith("line") and tokens == pytest.approx(500 / 3 + 50 / 3)  # 0.01 n - 11 / 6


@pytest.mark.parametrize(
    ("saved", "expected", "says"),
    [
        ([1.0, 2.0], 0, "from 0"),  # through the origin
        ([3.0, 4.0], 0, "from 0"),  # from the first token on
        ([-1.0, -2.0], None, "does not rise"),  # the longer the worse
        ([2.0, 1.0], None, "does not rise"),  # pays for short prompts only
        ([0.5, 1.5], 50, "smallest"),
        ([-9.0, -8.0], 1000, "largest"),
    ],
)
def test_break_even_of_other_lines(saved, expected, says):
    tokens, why = solved([100, 200], [[s] for s in saved])
    assert tokens == (None if expected is None else pytest.approx(expected, abs=1e-9)) and says in why


def test_break_even_takes_medians_and_says_how_rounds_differ():
    tokens, why = solved([100, 200], [[-1.0, -1.0, -1.0, 50.0, 50.0], [1.0] * 5])
    assert tokens == pytest.approx(150) and "5 rounds" in why
    assert why.endswith("150 to never"), "two of five rounds alone would say never"


def test_times_that_scatter_more_count_less():
    sizes, saved = [100, 200, 300, 400], [[-1.0], [1.0], [1.0], [5.0]]
    trusted = [solved(sizes, saved, stock)[0] for stock in ([1.0, 1.0, 1e6, 1e6], [1e6, 1e6, 1.0, 1.0])]
    assert trusted[0] == pytest.approx(150, rel=0.01) and trusted[0] != pytest.approx(trusted[1], rel=0.1)


def test_curves_without_slope():
    assert Curve(1.0, 0.0, 0.0).root == 0 and Curve(-1.0, 0.0, 0.0).root is None


def test_one_size_is_no_curve():
    assert solved([576], [[1.0]])[0] is None and solved([], [])[0] is None


@pytest.mark.parametrize(("family", "sizes"), [("llava", [4, 9, 36, 72, 144]), ("qwen2_5_vl", [28, 35, 70, 140])])
def test_break_even_is_measured_on_prompts_of_every_size(family, sizes, monkeypatch):
    model, seen = ready(family), []
    before = hooks(model)

    def noted(tokens, *times):
        seen.append((tokens, [[len(rounds) for rounds in each] for each in times]))
        return 1.0, ""

    monkeypatch.setattr("foveate.bench.times.breakeven.break_even", noted)
    entries = entries_of(["stride", "resize"], [0.5])
    setting = Setting(model, None, prompts_for(family, model), entries, 2, lambda *a: None)
    found = measure_break_even(setting)
    assert seen == [(sizes, [[2] * len(sizes)] * 2)] * 2
    assert [one["label"] for one in found] == [e.label for e in entries] and hooks(model) == before


def test_a_smaller_picture_goes_through_the_tower():
    model = tiny.build("llava")
    fed = prompts_for("llava", model)(1, 1, 1.0)
    small = shrunk(model, fed, 0.5)
    assert small.visual(model) == 9 and small.fed["input_ids"].shape == small.fed["attention_mask"].shape == (1, 15)
    with caught(model.model.vision_tower) as calls, compress(model, "stride", keep=4) as run:
        out = small.first_token(model)
    assert len(calls) == 1 and calls[0]["interpolate_pos_encoding"]
    assert (run.report.tokens_in, run.report.tokens_out) == (9, 4) and out.past_key_values.get_seq_length() == 15
    assert shrunk(tiny.build("gemma3"), tiny.inputs("gemma3", tiny.build("gemma3"), [[("image", "a"), 5]]), 0.5) is None


# -- the page and the command ------------------------------------------------------------------------------------------


def test_markdown_shows_every_row_and_every_plan(result):
    text = markdown(result)
    for row in result["rows"]:
        line = next(x for x in text.splitlines() if x.startswith(f"| {row['label']} |") or f"`{row['label']}`" in x)
        assert "error" in row or line.count("|") == 13
    assert text.count("| uncompressed |") == 2 and "Batch of 2, 36 visual and 6 text tokens" in text
    assert "never" in text and "Medians of 2 rounds" in text
    ratio = result["rows"][1]["time"]["prefill"]["over"]
    assert f"{ratio:.3f} (" in text


def invoke(*words):
    app = typer.Typer()
    app.command("time")(command)
    return CliRunner().invoke(app, [str(word) for word in words])


SMALL = ("--shape", "llava-1.5-7b/32", "--methods", "stride", "--keep", 0.1, "--batch", 1, "--rounds", 1)


def test_command_writes_tables_and_numbers(tmp_path):
    page, numbers, threads = tmp_path / "page.md", tmp_path / "deep" / "time.json", torch.get_num_threads()
    page.write_text(f"# Title\n{clock.START}\nold\n{clock.END}\nrest\n")
    options = ("--text", 8, "--new-tokens", 2, "--threads", 1, "--no-break-even", "--write", page, "--results", numbers)
    done = invoke(*SMALL, *options)
    assert done.exit_code == 0, done.output
    found = json.loads(numbers.read_text())
    assert torch.get_num_threads() == threads and found["environment"]["threads"] == 1
    assert found["model"]["name"] == "llava-1.5-7b/32" and found["model"]["weights"] == "random"
    assert [row["visual_tokens"] for row in found["rows"]] == [576, 576] and found["break_even"] == []
    assert found["command"] == (
        "foveate bench time --shape llava-1.5-7b/32 --methods stride --keep 0.1 --batch 1 --text 8 --new-tokens 2 "
        "--rounds 1 --no-break-even --threads 1"
    )
    text = page.read_text()
    assert "old" not in text and "| stride:keep=10% |" in text and text.endswith(f"{clock.END}\nrest\n")
    assert "| stride:keep=10% |" in done.stdout


def test_command_takes_a_loaded_model_and_gives_plain_data(tmp_path, monkeypatch):
    model = build("llava-1.5-7b/32")
    monkeypatch.setattr("foveate.cli.clock.load", lambda *a: (model, None))
    monkeypatch.setattr("foveate.bench.times.shapes.prompts_by", lambda model, processor, text: prompts_of(model, text))
    options = ("--keep", "64", "--methods", "norm", "--batch", 1, "--rounds", 1, "--new-tokens", 1, "--json")
    done = invoke(*options, "--results", tmp_path / "time.json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == json.loads((tmp_path / "time.json").read_text())
    assert found["model"]["name"] == "testbed" and found["model"]["weights"] == "trained"
    assert [one["label"] for one in found["break_even"]] == ["norm:keep=64/image"]
    assert (
        all(f" at {n * 576}" in found["break_even"][0]["why"] for n in (1, 2, 4))
        and " at 36" in found["break_even"][0]["why"]
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shape", "gpt"], "no shape"),
        (["--shape", "llava-1.5-7b/32", "--model", "folder"], "--model and --shape"),
        (["--dtype", "float8"], "float8"),
        (["--methods", "dviprune"], "divprune"),
        (["--keep", "9.0"], "9.0"),
        (["--batch", "0"], "nothing"),
        (["--methods", ""], "nothing"),
    ],
)
def test_command_refuses_at_once(options, says, tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.cli.clock.load", lambda *a: pytest.fail("a model was loaded"))
    done = invoke(*options, "--results", tmp_path / "time.json")
    assert isinstance(done.exception, FoveateError) and says in str(done.exception)
    assert not (tmp_path / "time.json").exists()


def test_command_wants_a_place_for_its_tables_first(tmp_path, monkeypatch):
    monkeypatch.setattr("foveate.cli.clock.load", lambda *a: pytest.fail("a model was loaded"))
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    done = invoke("--write", page, "--results", tmp_path / "time.json")
    assert isinstance(done.exception, UnsupportedError) and "no place" in str(done.exception)


@pytest.mark.parametrize("wrong", [{"batches": ()}, {"rounds": 0}, {"new_tokens": 0}, {"images": 0}])
def test_numbers_below_one_are_refused(model, wrong):
    with pytest.raises(UnsupportedError, match="0"):
        measure_time(model, prompts_for("llava", model), [], **wrong)
