"""The report: what it refuses to show, that nothing measured is missing from it, and that it stands by itself."""

import copy
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

import tiny
from bench import stub
from foveate import Plan, UnsupportedError
from foveate.bench.grid.results import Cell, Entry, Place, build
from foveate.bench.report import figures, gallery, report, timesheet
from foveate.bench.report.digest import Digest, signed
from foveate.errors import MissingExtraError

EVIL = '<script>alert("x")</script>'
SLICES = ("colours", f"{EVIL} signs")
OUTSIDE = ("http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "javascript:")
ENVIRONMENT = {"torch": "2", "transformers": "5", "dtype": "float32", "device": "cpu", "threads": 1, "processor": "a"}


def right_of(n: int, wrong: set[int]) -> list[bool]:
    return [i not in wrong for i in range(n)]


# Of 40 samples the uncompressed model misses two. "fine" differs in one sample, "poor" loses half of the first slice.
OUTCOMES = {
    "uncompressed": {0, 21},
    "norm": {1, 21},
    "stride": {0, 21, *range(2, 12)},
    "resize": {0, 1, 2, 3, 21},
    "dart": set(),
}


HERE = (Place(),)


def grid(n: int = 40, at: range | None = None, shard: tuple[int, int] = (1, 1), places=HERE, **changes):
    """A result with real statistics of made-up outcomes: four methods at two budgets, one refused row."""
    at = at or range(n)
    samples = [
        {"place": i, "id": f"s-{i}", "slice": SLICES[i >= n // 2], "question": f"what is {EVIL} {i}", "answer": "yes"}
        for i in at
    ]
    rows, cells = [], {}
    for place in places:
        for method, missed in OUTCOMES.items():
            for keep in ("",) if method == "uncompressed" else ("16", "4"):
                plan = None if not keep else Plan.of(method, int(keep))
                stage = plan.steps[0].stage if plan else ""
                entry = Entry(str(plan) if plan else method, plan, method, keep, stage)
                rows.append((entry, place))
                right = [right_of(n, missed)[i] for i in at]
                said = ["yes" if r else f"no {method}" for r in right]
                tokens = len(at) * int(keep or 36)
                cells[place.key(entry.label)] = Cell(
                    list(range(len(at))), said, right, images=len(at), before=36 * len(at), tokens=tokens, layers=tokens
                )
    refused = Entry("divprune:keep=4/image", Plan.of("divprune", 4), "divprune", "4", "connector")
    rows.append((refused, Place()))
    cells[Place().key(refused.label)] = Cell(error=f"it has no {EVIL}")
    head = {
        "bench": "grid", "schema": 1, "command": f"foveate bench grid --limit {n}", "identity": "abc",
        "protocol": {"limit": n, "shard": list(shard)}, "environment": ENVIRONMENT,
        "model": {"name": "a model", "class": "Llava", "parameters": 1_200_000, "layers": 2},
        "task": "made up", "note": "Made-up numbers.", "chance": dict.fromkeys(SLICES, 0.25),
    }  # fmt: skip
    result = build(head | changes, samples, rows, cells)
    timed = {"norm:keep=4/image": times(0.6), "uncompressed": times(1.0)}
    for row in result["rows"]:
        if row["label"] in timed and (row["condition"], row["selection"]) == ("clean", "turn"):
            row["time"] = timed[row["label"]]
    return result


def times(over: float) -> dict:
    part = {"seconds": 0.2 * over, "over": over, "quartiles": [over - 0.01, over + 0.02]}
    return {
        "tower": part, "prefill": part, "first_token": part, "oracle": part, "efficiency": 0.9,
        "efficiency_quartiles": [0.88, 0.93], "cache_bytes": 2048, "cache_over": over, "peak_memory": None,
        "peak_over": None,
    }  # fmt: skip


def time_bench() -> dict:
    rows = []
    for tokens in (576, 2880):
        for method, over in (("uncompressed", 1.0), ("norm", 0.5), ("stride", 1.25)):
            keep = "" if method == "uncompressed" else "0.1"
            label = f"{method}:keep=10%" if keep else method
            row = {"label": label, "method": method, "keep": keep, "stage": "connector", "batch": 2}
            rows.append(row | {"visual_tokens": tokens, "text_tokens": 8, "new_tokens": 4, "time": times(over)})
    rows.append({"label": "trim", "method": "trim", "error": "no text encoder"})
    return {
        "bench": "time", "schema": 1, "command": "foveate bench time", "environment": ENVIRONMENT, "rounds": 7,
        "model": {"name": "a shape", "class": "Llava", "weights": "random", "parameters": 7 * 10**9, "layers": 32},
        "control": {"first_token": [1.01, 0.97, 1.0]}, "rows": rows,
        "break_even": [{"label": "stride:keep=10%", "visual_tokens": None, "why": "never faster"}],
    }  # fmt: skip


def table() -> dict:
    """What `foveate bench table` writes: no schema, no name of a bench."""
    result = grid()
    rows = [{name: row[name] for name in row if name not in ("condition", "selection")} for row in result["rows"]]
    kept = ("environment", "task", "note", "chance", "slices", "command")
    return {name: result[name] for name in kept} | {"samples": 40, "rows": rows}


def inside() -> dict:
    """What `foveate bench inside` writes."""
    result = table() | {"bench": "inside"}
    extra = {"kind": "layers", "target": 0.5, "plan": "", "layers_share": 0.5, "prefill": 0.6, "cache_share": 0.5}
    result["rows"] = [row | extra | {"prefill_quartiles": [0.4, 0.7]} for row in result["rows"] if "n" in row]
    return result


def save(folder, result, name="result.json"):
    path = folder / name
    path.write_text(json.dumps(result))
    return path


def page_of(folder, *results, **options) -> str:
    paths = [save(folder, result, f"{i}.json") for i, result in enumerate(results)]
    return report.write(paths, folder / "out", plots=False, **options).page.read_text()


class Page(HTMLParser):
    """Tags with their attributes, text, and that every tag is closed by its own."""

    VOID = ("meta", "br", "img", "wbr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results", [[grid()], [time_bench()], [grid(), time_bench(), table(), inside()]])
def test_the_page_stands_by_itself(tmp_path, results):
    text = page_of(tmp_path, *results).replace(EVIL, "")
    assert not [mark for mark in OUTSIDE if mark in text]
    page = Page(text)
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert links and {link[1:] for link in links} <= set(ids) and all(link[0] == "#" for link in links)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 2 for before, after in pairwise(levels))
    drawings = [a for a in page.all("svg") if "key" not in a["class"]]
    assert drawings and all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert page.text().count("Made-up numbers.") >= sum("note" in result for result in results)


def test_text_of_others_stays_text(tmp_path):
    page = Page(page_of(tmp_path, grid()))
    assert not page.all("script")
    assert EVIL in page.text()
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_every_row_slice_and_reason_is_there(tmp_path):
    result = grid()
    text = Page(page_of(tmp_path, result)).text()
    for row in result["rows"]:
        assert row["label"] in text
        if "error" in row:
            assert row["error"] in text
        else:
            assert f"{100 * row['accuracy']:.1f} {100 * row['low']:.1f} to {100 * row['high']:.1f}" in text
    assert all(name in text for name in SLICES)
    assert all(word in text for word in (result["command"], result["identity"], "1.2 million parameters", "n = 20"))


def test_tables_scroll_in_a_box_of_their_own(tmp_path):
    text = page_of(tmp_path, grid(), time_bench(), table(), inside())
    assert text.count("<table") == text.count('<div class="scroll" role="region" tabindex="0" aria-label=') > 10


def cells(text: str, method: str) -> str:
    """The first row of the heat map of a method."""
    heat = text[text.index('<table class="heat"') :]
    return heat[heat.index(f">{method}</th>") :].split("</tr>")[0]


def test_only_differences_beyond_chance_have_a_sign(tmp_path):
    text = page_of(tmp_path, grid())
    poor, same, better = (cells(text, method) for method in ("stride", "norm", "dart"))
    assert "<b><i>▼</i> \N{MINUS SIGN}25.0</b>" in poor  # of all 40 samples, ten were lost
    assert "<b><i>▼</i> \N{MINUS SIGN}50</b>" in poor and 'class="w5 least"' in poor  # of the first slice
    assert "▼" not in same and "▲" not in same  # one lost, one gained
    assert "+5.0" in better and "▲" not in better  # two gained of 40: the interval begins at zero


def test_accuracy_above_the_uncompressed_one_is_shown_as_it_is(tmp_path):
    result = grid()
    row = next(row for row in result["rows"] if row["method"] == "dart")
    assert row["accuracy"] == 1.0
    line = Page(page_of(tmp_path, result)).text()
    assert "105.3" in line  # 40 of 40 over 38 of 40
    digest = Digest(result)
    chart, _ = digest.tokens("before")
    low, high = chart.y_range()
    assert all(low <= end <= high for s in chart.series for p in s.points for end in (p.low, p.y, p.high))


def test_simple_and_difficult_come_with_their_sizes(tmp_path):
    text = Page(page_of(tmp_path, grid())).text()
    assert "35 and 3 at keep = 16; 35 and 3 at keep = 4" in text


def test_the_first_budget_can_be_chosen(tmp_path):
    assert "Before the language model, keep = 4" in page_of(tmp_path, grid()).split("<details")[4]
    first = page_of(tmp_path, grid(), keep="16")
    assert first.index("Before the language model, keep = 16") < first.index("Before the language model, keep = 4<")


def test_conditions_and_selection_have_their_tables(tmp_path):
    result = grid(places=(Place(), Place("blur-1"), Place("clean", "once")))
    page = page_of(tmp_path, result)
    text = Page(page).text()
    assert "Degraded pictures" in text and "blur-1" in text
    once = page[page.index('-once"') : page.index('-pictures" class')]
    assert "once against each turn" in once and "0.0 to 0.0" in once  # the same outcomes both times
    assert "Degraded" not in page_of(tmp_path, grid())


def test_a_full_grid_stays_small(tmp_path):
    """70 methods at 4 budgets, 11 slices, 550 samples."""
    result = grid()
    names = [f"slice-{i}" for i in range(11)]
    result["samples"] = [
        {"id": f"s-{i}", "slice": names[i % 11], "question": "what is it", "answer": "a", "place": i}
        for i in range(550)
    ]
    result["slices"], result["chance"] = names, {}
    stock = result["rows"][0]
    wide = {"n": 550, "right": 550, "accuracy": 1.0, "low": 0.9, "high": 1.0}
    part = {"n": 50, "right": 50, "accuracy": 1.0, "low": 0.9, "high": 1.0}
    paired = {"difference": 0.0, "low": 0.0, "high": 0.0, "gained": 0, "lost": 0, "p": 1.0, "same": 1.0}
    stock |= wide | {"slices": dict.fromkeys(names, part)}
    shape = result["rows"][1] | wide | {"against_uncompressed": paired, "time": times(0.5), "agreement": wide}
    shape |= {"slices": {name: part | {"against_uncompressed": paired} for name in names}}
    for name in ("simple", "difficult"):
        shape[name] = wide | {"n": 275, "right": 275}
    shape["worst"] = {"slice": names[0], "difference": 0.0, "low": 0.0, "high": 0.0}
    result["rows"] = [stock] + [
        shape | {"label": f"method_{i}:keep={keep}/image", "method": f"method_{i}", "keep": keep}
        for i in range(70)
        for keep in ("192", "128", "64", "32")
    ]
    result["curves"] = []
    assert len(page_of(tmp_path, result)) < 2_000_000


def test_time_bench(tmp_path):
    text = Page(page_of(tmp_path, time_bench())).text()
    assert "7.00 billion parameters" in text and "weights are random" in text
    assert "never" in text and "never faster" in text and "no text encoder" in text
    assert "off by 0.010 in the median of 3 groups of plans, by 0.030 in the worst" in text
    assert "1.250" in text and "0.500" in text  # slower than uncompressed is shown as it is
    drawn = timesheet.chart([row for row in time_bench()["rows"] if "error" not in row])
    assert drawn.y_range()[1] > 1.25


# -- reading and merging -----------------------------------------------------------------------------------------------


def test_parts_of_one_run_become_one(tmp_path):
    halves = [grid(at=range(0, 40, 2), shard=(1, 2)), grid(at=range(1, 40, 2), shard=(2, 2))]
    paths = [save(tmp_path, half, f"{i}.json") for i, half in enumerate(halves)]
    (source,) = report.gather(paths)
    assert source.files == tuple(map(str, paths))
    whole = grid()
    assert [row.get("right") for row in source.result["rows"]] == [row.get("right") for row in whole["rows"]]
    for wrong, what in (([paths[0]], "do not make a whole"), ([paths[0], paths[0]], "same part")):
        with pytest.raises(UnsupportedError, match=what) as caught:
            report.gather(wrong)
        assert "0.json" in str(caught.value)


def test_runs_of_their_own_become_sections(tmp_path):
    other = grid(identity="def", model={"name": "another", "class": "Qwen"})
    page = Page(page_of(tmp_path, grid(), other))
    assert "Accuracy of a model on made up" in page.text() and "Accuracy of another on made up" in page.text()
    assert "2 results from 2 files" in page.text()


def broken(change):
    result = copy.deepcopy(grid())
    change(result)
    return result


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ([1, 2], "not a result"),
        ({"bench": "speed"}, "not a result"),
        (broken(lambda r: r.update(schema=2)), "schema 2"),
        (broken(lambda r: r.pop("schema")), "schema None"),
        (broken(lambda r: r.pop("samples")), "has no samples"),
        (broken(lambda r: r["rows"][1].update(right=41)), "41 right of 40"),
        (broken(lambda r: r["rows"][1].update(accuracy=0.5)), "accuracy 0.5 is not"),
        (broken(lambda r: r["rows"][1]["slices"]["colours"].update(right=21)), "21 right of 20"),
        (broken(lambda r: r["rows"][1]["slices"].pop("colours")), "do not add up"),
        (broken(lambda r: r["rows"][1].update(low=0.99)), "outside its interval"),
        (
            broken(lambda r: r["rows"][1]["against_uncompressed"].update(difference=0.5)),
            "not that of the right answers",
        ),
        (broken(lambda r: r["rows"][1]["against_uncompressed"].pop("p")), "has no p"),
        (broken(lambda r: r["rows"][1]["simple"].update(n=36, right=36)), "simple and difficult"),
        (broken(lambda r: r["rows"].append(r["rows"][1])), "twice"),
        (broken(lambda r: r["rows"].pop(0)), "no row of the uncompressed model"),
        (broken(lambda r: r["rows"][1].update(condition="blur-1")), "no uncompressed row"),
        (broken(lambda r: r["rows"][1].update(tokens_per_image=float("nan"))), "nan"),
        (broken(lambda r: r["rows"][1].pop("n")), "has no n"),
        (broken(lambda r: r["rows"][1].update(slices=3)), "not a whole result"),
        (time_bench() | {"rows": [{"label": "a", "method": "a", "batch": 1}]}, "has no visual_tokens, time"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_by_name(tmp_path, result, what):
    with pytest.raises(UnsupportedError, match=re.escape(what)) as caught:
        report.read(save(tmp_path, result, "wrong.json"))
    assert "wrong.json" in caught.value.what and caught.value.hint


def test_what_is_no_file_or_no_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for name, what in (("a.json", "not JSON"), ("b.json", "no file")):
        with pytest.raises(UnsupportedError, match=what) as caught:
            report.read(tmp_path / name)
        assert name in caught.value.what
    with pytest.raises(UnsupportedError, match="nothing to report"):
        report.gather([])


# -- drawings ----------------------------------------------------------------------------------------------------------


def test_png_files_lie_beside_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    paths = [save(tmp_path, grid(), "a.json"), save(tmp_path, time_bench(), "b.json")]
    done = report.write(paths, tmp_path / "out")
    assert sorted(path.name for path in done.plots) == sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    names = {path.name for path in done.plots}
    assert {"grid-1-tokens-before.png", "grid-1-time-before.png", "grid-1-slices.png", "time-2-first.png"} <= names
    for path in done.plots:
        with Image.open(path) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 20)) > 3


def test_without_matplotlib_there_is_the_page_and_a_note(tmp_path, monkeypatch):
    def missing(module, extra):
        raise MissingExtraError(f"no {module}", hint=f"the extra {extra}")

    monkeypatch.setattr("foveate.bench.report.plots.require", missing)
    done = report.write([save(tmp_path, grid())], tmp_path / "out")
    assert done.page.exists() and done.plots == [] and "the extra report" in done.notes[0]


def places(text: str) -> tuple[list[float], list[float]]:
    """Everything along x, and along y, that a drawing names."""
    along = [[float(v) for v in re.findall(rf' c?{axis}[12]?="(-?[\d.]+)"', text)] for axis in "xy"]
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", text):
        along[0].append(float(x))
        along[1].append(float(y))
    along[1] += [float(y) for y in re.findall(r"V(-?[\d.]+)", text)]
    return along[0], along[1]


def test_a_chart_clips_nothing():
    points = [figures.Point(2.0**i, 0.1 + 0.3 * i, 0.05 + 0.3 * i, 0.15 + 0.3 * i) for i in range(4)]
    series = figures.Series("a", points, tuple((p.x, p.y) for p in points))
    chart = figures.Chart(
        "c", "title", "about", "x", "y", [series], figures.Level(0.5, "level", 0.4, 0.6), percent=False
    )
    for drawing, size in (
        (figures.svg(chart), (figures.WIDTH, figures.HEIGHT)),
        (figures.small(chart, series), figures.SMALL),
    ):
        for along, end in zip(places(drawing), size, strict=True):
            assert len(along) >= 10 and min(along) >= 0 and max(along) <= end
    low, high = chart.y_range()
    assert low == 0 and high > 1.05  # the highest interval


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.4, 0.95), (0, 1373), (0.91, 1.02)])
def test_ticks_are_round_and_inside(low, high):
    ticks = figures.steps(low, high)
    assert 3 <= len(ticks) <= 12 and all(low <= tick <= high for tick in ticks)
    assert all(len(f"{tick:g}") <= 5 for tick in ticks)


def test_numbers_on_a_logarithmic_axis_do_not_collide():
    point = [figures.Point(x, 0.5) for x in (32, 33, 64, 576)]
    chart = figures.Chart("c", "", "", "", "", [figures.Series("a", point)], marks=(32, 33, 64, 576))
    assert chart.x_ticks() == [32, 64, 576]


def test_signs():
    assert [signed(v) for v in (-1.04, 0.04, -0.04, 2)] == ["\N{MINUS SIGN}1.0", "0.0", "0.0", "+2.0"]


def test_kept_tokens_are_drawn_for_the_testbed_only(tmp_path, monkeypatch):
    model = tiny.build("llava")
    task = stub.task(model, 40)
    for i, sample in enumerate(task.samples):
        sample.id, sample.slice, sample.answer = f"s-{i}", SLICES[i >= 20], "yes"
    monkeypatch.setattr("foveate.testbed.samples", lambda slices: task.samples)
    monkeypatch.setattr("foveate.testbed.inputs", task.inputs)
    monkeypatch.setattr("foveate.testbed.correct", task.correct)
    result = grid(model={"name": "testbed", "class": "Llava"})
    loaded = []

    def load():
        loaded.append(1)
        return model, stub.Processor()

    page = Page(page_of(tmp_path, result, pictures=2, load=load))
    pictures = page.all("img")
    assert len(loaded) == 1 and len(pictures) == 2 * 5  # the whole picture and four methods at the middle budget
    assert all(p["src"].startswith("data:image/png;base64,") and "tokens" in p["alt"] for p in pictures)
    assert "--pictures 3" in gallery.gallery(result, 0, load)
    assert "another model" in gallery.gallery(grid(), 2, load) and len(loaded) == 1
