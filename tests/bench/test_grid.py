"""The grid on a tiny random model: baselines, resuming, parts, and what every row says."""

import json

import pytest

import tiny
from bench import stub
from foveate.bench.grid.grid import BASELINES, Grid, asks, entries_of, fingerprint, with_times
from foveate.bench.grid.ledger import Ledger
from foveate.bench.grid.results import STOCK, curves, merge
from foveate.bench.runner import prepared
from foveate.errors import UnsupportedError
from foveate.plan import Plan

METHODS, KEEPS = ["norm", "fastv"], [9, 16]


class Talker(stub.Processor):
    """Earlier turns stand before the question, as a chat template would write them."""

    def __call__(self, samples):
        said = [" ".join(f"{q} {a}" for q, a in s.history) for s in samples]
        whole = [
            stub.Sample(s.slice, f"{t} {s.question}".strip(), "", s.images) for s, t in zip(samples, said, strict=True)
        ]
        return super().__call__(whole)


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    found = stub.task(model, 7)
    for i in (0, 4):  # one turn earlier: its question, and what was answered
        found.samples[i].history.append((f"{tiny.TEXT + 90 + i} {tiny.TEXT + 91}", f"{tiny.TEXT + 92}"))
        found.samples[i].slice = "later"
    return found


def grid(model, task, **options):
    asked = {"methods": METHODS, "keeps": KEEPS, "seeds": 2, "batch": 3, "max_new_tokens": 3} | options
    return Grid(model, Talker(), task, name="tiny", **asked)


def run(one, path=None, tick=None):
    with Ledger(path, one.setting()) as ledger:
        one.measure(ledger, tick)
        return one.result(ledger, "foveate bench")


@pytest.fixture(scope="module")
def whole(model, task):
    return run(grid(model, task, conditions=["noise-3"]))


def rows(result, **wanted):
    return [row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_baselines_are_always_there_and_budgets_are_kept(whole):
    clean = rows(whole, condition="clean", selection="turn")
    assert clean[0]["method"] == STOCK and clean[0]["tokens_per_image"] == 36
    assert {*BASELINES, *METHODS} <= {row["method"] for row in clean}
    drawn = [(row["keep"], row["seed"]) for row in clean if row["method"] == "random"]
    assert drawn == [("9", 0), ("9", 1), ("16", 0), ("16", 1)]
    for row in rows(whole, method="norm", selection="turn"):
        assert row["tokens_per_image"] == row["tokens_over_layers"] == float(row["keep"])
    for row in rows(whole, method="fastv", selection="turn"):
        assert float(row["keep"]) < row["tokens_over_layers"] < 36


def test_numbers_of_a_row_add_up(whole, task):
    for row in whole["rows"]:
        assert row["n"] == (len(task.samples) if row["selection"] == "turn" else 2)
        assert row["right"] == sum(part["right"] for part in row["slices"].values())
        key = f"{row['label']}|{row['condition']}|{row['selection']}"
        assert whole["outcomes"][key]["right"].count("1") == row["right"] and len(whole["answers"][key]) == row["n"]
        stock = rows(whole, label=STOCK, condition=row["condition"], selection=row["selection"])[0]
        if row["label"] != STOCK:
            change = row["against_uncompressed"]
            assert change["difference"] == pytest.approx(row["accuracy"] - stock["accuracy"])
            assert row["agreement"]["n"] == row["n"]
            assert row["worst"]["difference"] == min(
                part["against_uncompressed"]["difference"] for part in row["slices"].values()
            )
        if "simple" in row:
            resize = rows(whole, method="resize", keep=row["keep"], condition=row["condition"], selection="turn")[0]
            assert row["simple"]["n"] + row["difficult"]["n"] == stock["right"]
            assert row["method"] != "resize" or row["simple"]["accuracy"] in (0, 1)
            assert resize["keep"] == row["keep"]


def test_a_degraded_picture_is_held_against_the_uncompressed_model_on_the_same_picture(whole):
    noisy = rows(whole, label=STOCK, condition="noise-3")[0]
    assert whole["answers"][f"{STOCK}|noise-3|turn"] != whole["answers"][f"{STOCK}|clean|turn"]
    for row in rows(whole, condition="noise-3"):
        if row["label"] != STOCK:
            assert row["against_uncompressed"]["difference"] == pytest.approx(row["accuracy"] - noisy["accuracy"])


def test_tokens_chosen_once(whole, model, task):
    once = rows(whole, selection="once")
    assert [row["method"] for row in once] == [STOCK, "fastv", "fastv"], "only what looks at the question"
    assert asks(Plan.of("fastv", 9)) and not asks(Plan.of("norm", 9)) and not asks(None)
    for row in once:
        assert list(row["slices"]) == ["later"]
    assert whole["answers"][f"{STOCK}|clean|once"] == [whole["answers"][f"{STOCK}|clean|turn"][i] for i in (0, 4)]
    assert set(once[1]["against_turn"]) == set(once[1]["against_uncompressed"])
    assert not rows(run(grid(model, task, once=False)), selection="once")


def test_tokens_chosen_once_by_a_plan_that_starts_in_the_tower(model, task):
    result = run(grid(model, task, methods=[], keeps=[9], plans=["tome_tower:keep=16 > fastv:keep=9"]))
    (row,) = (row for row in rows(result, selection="once") if row["method"] == "tome_tower")
    assert "error" not in row and row["tokens_per_image"] == 9


@pytest.mark.parametrize("after", [1, 10, 30])
def test_a_killed_run_goes_on_and_makes_the_same_file(model, task, whole, tmp_path, after):
    path, seen = tmp_path / "run.ledger.jsonl", []

    def die(piece):
        seen.append(piece.name)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(grid(model, task, conditions=["noise-3"]), path, die)
    path.write_bytes(path.read_bytes()[:-7])  # the last line was being written
    again = []
    result = run(grid(model, task, conditions=["noise-3"]), path, lambda piece: again.append(piece.name))
    every = {piece.name for piece in grid(model, task, conditions=["noise-3"]).pieces()}
    assert set(again) == every - set(seen[:-1])
    assert json.dumps(result) == json.dumps(whole)


def test_asking_for_more_measures_only_that(model, task, tmp_path):
    path, seen = tmp_path / "run.ledger.jsonl", []
    run(grid(model, task, methods=["norm"]), path)
    run(grid(model, task, methods=["norm", "fastv"]), path, lambda piece: seen.append(piece.entry.method))
    assert set(seen) == {"fastv", STOCK}, "the uncompressed model only where it was not asked: tokens chosen once"
    with pytest.raises(UnsupportedError, match="batch: 3 then, 4 now"):
        run(grid(model, task, batch=4), path)


@pytest.mark.parametrize("n", [2, 3])
def test_parts_make_the_whole(model, task, whole, n):
    parts = [run(grid(model, task, conditions=["noise-3"], shard=(i + 1, n))) for i in range(n)]
    assert json.dumps(merge(parts[::-1])) == json.dumps(whole)
    assert json.dumps(merge([json.loads(json.dumps(part)) for part in parts])) == json.dumps(whole)
    with pytest.raises(UnsupportedError, match="do not make a whole"):
        merge(parts[1:])
    with pytest.raises(UnsupportedError, match="do not make a whole"):
        merge([*parts, parts[0]])
    other = run(grid(model, task, keeps=[9], conditions=["noise-3"], shard=(1, n)))
    with pytest.raises(UnsupportedError, match="different grids"):
        merge([other, *parts[1:]])


def test_a_refused_plan_is_a_row_with_its_reason(model, task):
    result = run(grid(model, task, methods=["norm"], keeps=[9, "=99/image"]))
    refused = [row for row in result["rows"] if "error" in row]
    assert refused and all("99" in row["error"] and "accuracy" not in row for row in refused)
    assert all(row["keep"] == "=99/image" for row in refused)


def test_whole_plans_stand_beside_methods(model, task):
    plans = ["norm:keep=18 > fastv:keep=9", {"steps": [{"method": "tome", "keep": 9}], "positions": "preserved:2"}]
    result = run(grid(model, task, methods=[], keeps=[9], plans=plans))
    labels = [row["label"] for row in result["rows"]]
    assert labels[-2:] != labels[-4:-2] and "tome:keep=9/image (preserved:2 positions)" in labels
    assert "norm:keep=18/image > fastv:keep=9/image" in labels


def test_times_come_to_the_rows_on_clean_pictures_and_survive(model, task, tmp_path, monkeypatch):
    def prompts(model, processor, text):
        first = task.samples[0]
        return lambda batch, images, share: prepared(model, processor([first] * batch))

    monkeypatch.setattr("foveate.bench.grid.grid.prompts_by", prompts)
    one, path, seen = grid(model, task, conditions=["jpeg-1"]), tmp_path / "run.ledger.jsonl", []
    with Ledger(path, one.setting()) as ledger:
        one.measure(ledger)
        one.time(ledger, 1, seen.append)
        one.time(ledger, 1, seen.append)
        result = one.result(ledger, "foveate bench")
    assert [entry.label for entry in seen] == [entry.label for entry in one.timed()], "each once"
    for row in result["rows"]:
        usual = row["condition"] == "clean" and row["selection"] == "turn"
        assert ("time" in row) == (usual and not row["seed"])
    times = {row["label"]: row["time"] for row in result["rows"] if "time" in row}
    assert times[STOCK]["total"]["over"] == 1 and times["norm:keep=9/image"]["cache_over"] < 1
    assert "efficiency" in times["norm:keep=9/image"] and "oracle" not in times["fastv:keep=9/image"]
    with Ledger(path, one.setting()) as ledger:
        assert json.dumps(one.result(ledger, "foveate bench")) == json.dumps(result)
    parts = [run(grid(model, task, conditions=["jpeg-1"], shard=(i, 2))) for i in (1, 2)]
    parts[0] = with_times(parts[0], ledger)
    assert json.dumps(merge(parts)) == json.dumps(result)


def test_wrong_requests(model, task):
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(UnsupportedError, match="no part"):
            grid(model, task, shard=shard)
    with pytest.raises(UnsupportedError, match="fog"):
        grid(model, task, conditions=["fog"])
    with pytest.raises(UnsupportedError, match="nothing to ask"):
        grid(model, type(task)("empty", [], task.inputs, task.correct))


def test_methods_with_their_own_schedule_run_once():
    labels = [entry.label for entry in entries_of(["vtw", "ima"], [9, 16])]
    assert labels.count("ima") == 1
    assert [entry.keep for entry in entries_of(["ima"], [9])][-1] == ""


def test_a_fingerprint_follows_the_weights(model):
    before = fingerprint(model)
    assert before == fingerprint(tiny.build("llava"))
    other = tiny.build("llava")
    other.lm_head.weight.data.flatten()[3] += 1
    assert fingerprint(other) != before


def test_area_under_a_curve():
    def row(keep, accuracy, seed=None, method="a"):
        place = {"condition": "clean", "selection": "turn", "seed": seed}
        return {"method": method, "keep": keep, "tokens_per_image": float(keep), "accuracy": accuracy} | place

    (one,) = curves([row("64", 0.5), row("16", 0.1), row("256", 0.9)])
    assert one["tokens"] == [16, 64, 256] and one["area"] == pytest.approx((0.3 * 2 + 0.7 * 2) / 4)
    (drawn,) = curves([row("64", 0.4, 0), row("64", 0.6, 1), row("16", 0.5, 0), row("16", 0.5, 1)])
    assert drawn["accuracy"] == [0.5, 0.5] and drawn["area"] == 0.5
    assert curves([row("64", 0.5), row("16", 0.1, method="b")]) == []
