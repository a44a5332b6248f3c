"""Samples from files: what is read, what is refused and where, the prompts made of them, and how answers are scored."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from foveate.bench.advice.data import FORM, Sample, contains, exact, inputs, messages, opened, read_samples, task_of
from foveate.errors import MissingExtraError, UnsupportedError


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def written(folder, *rows):
    path = folder / "some.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def png(colour="red"):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(out, "png")
    return out.getvalue()


def test_all_columns_of_a_line(folder):
    row = {"image": ["red.png", "blue.png"], "question": "and now?", "answer": ["4", 5], "slice": "late", "id": 7}
    row["history"] = [["what is it?", "a cat"]]
    (sample,) = read_samples(written(folder, "", row, " "))
    assert sample.images == (folder / "red.png", folder / "blue.png")
    assert (sample.question, sample.answer, sample.slice) == ("and now?", ("4", "5"), "late")
    assert sample.history == (("what is it?", "a cat"),) and "line 2" in sample.where


def test_what_may_be_left_out(folder):
    (sample,) = read_samples(written(folder, {"image": "red.png", "question": "?", "answer": None}))
    assert sample == Sample((folder / "red.png",), "?")


def test_a_limit_draws_lines_by_chance(folder):
    path = written(folder, *({"image": "red.png", "question": str(i)} for i in range(40)))
    drawn = [[s.question for s in read_samples(path, 8, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 8
    assert drawn[0] == sorted(drawn[0], key=int) != [str(i) for i in range(8)]
    assert len(read_samples(path, 99)) == 40


GOOD = {"image": "red.png", "question": "?"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("red.png", "line 2 .* is not JSON"),
        ("[1]", "line 2 .* is no sample"),
        ({"question": "?"}, "line 2 .*column image: no picture; the columns are question"),
        (GOOD | {"image": []}, "line 2 .*column image"),
        (GOOD | {"image": "pink.png"}, "line 2 .*column image: there is no picture .*pink.png"),
        (GOOD | {"image": "some.jsonl"}, "line 2 .*column image: Pillow cannot read it"),
        (GOOD | {"image": 3}, "line 2 .*column image: 3 is neither"),
        ({"image": "red.png"}, "line 2 .*column question: None"),
        (GOOD | {"question": " "}, "line 2 .*column question"),
        (GOOD | {"answer": True}, "line 2 .*column answer: True"),
        (GOOD | {"answer": ["a", {}]}, "line 2 .*column answer"),
        (GOOD | {"answer": []}, "line 2 .*column answer"),
        (GOOD | {"answer": "?"}, "line 2 .*column answer"),
        (GOOD | {"slice": 3}, "line 2 .*column slice"),
        (GOOD | {"history": [["what?"]]}, "line 2 .*column history"),
        (GOOD | {"history": "what?"}, "line 2 .*column history"),
    ],
)
def test_bad_rows_are_named_with_file_line_and_column(folder, row, says):
    with pytest.raises(UnsupportedError, match=says) as caught:
        read_samples(written(folder, GOOD, row))
    assert "some.jsonl" in caught.value.what


def test_files_that_cannot_be_read(folder):
    with pytest.raises(UnsupportedError, match="is no file") as caught:
        read_samples(folder / "none.jsonl")
    assert FORM in caught.value.hint
    (folder / "a.jsonl").write_bytes(png())
    with pytest.raises(UnsupportedError, match="not text"):
        read_samples(folder / "a.jsonl")


# -- parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_in_all_its_forms(folder):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def check(images, expected, **more):
        table = arrow.table({"image": images, "question": ["a?"] * len(images), **more})
        parquet.write_table(table, folder / "some.parquet")
        found = read_samples(folder / "some.parquet")
        assert [s.images for s in found] == expected
        return found

    path, raw = folder / "red.png", png()
    check(["red.png"], [(path,)])
    check([raw, raw], [(raw,), (raw,)])
    check([{"bytes": raw, "path": "x.png"}, {"bytes": None, "path": "red.png"}], [(raw,), (path,)])
    check([[{"bytes": raw, "path": None}] * 2], [(raw, raw)])
    check([["red.png", "blue.png"]], [(path, folder / "blue.png")])
    more = {"answer": [["a", "b"], None], "history": [[["q", "a"]], []], "slice": ["one", None], "other": [1, 2]}
    one, two = check(["red.png", "red.png"], [(path,), (path,)], **more)
    assert (one.answer, one.history, one.slice) == (("a", "b"), (("q", "a"),), "one")
    assert (two.answer, two.history, two.slice) == (None, (), "all")
    assert "row 2" in two.where
    parquet.write_table(
        arrow.table({"image": ["red.png"] * 200, "question": [str(i) for i in range(200)]}), folder / "l.parquet"
    )
    some = [s.question for s in read_samples(folder / "l.parquet", 5, seed=3)]
    assert len(set(some)) == 5 and some != [str(i) for i in range(5)]
    parquet.write_table(arrow.table({"image": [raw, b"no"], "question": ["a?", "b?"]}), folder / "some.parquet")
    with pytest.raises(UnsupportedError, match=r"row 2 .*some.parquet, column image: Pillow cannot read it"):
        read_samples(folder / "some.parquet")


def test_a_broken_parquet_file(folder):
    pytest.importorskip("pyarrow")
    (folder / "some.parquet").write_text("no")
    with pytest.raises(UnsupportedError, match="is not a parquet file"):
        read_samples(folder / "some.parquet")


def test_without_pyarrow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (folder / "some.parquet").write_text("")
    with pytest.raises(MissingExtraError, match="eval"):
        read_samples(folder / "some.parquet")


# -- prompts -----------------------------------------------------------------------------------------------------------


class Writer:
    """A processor that hands back what it was given."""

    chat_template = None
    image_token = "<i>"

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt and not tokenize
        return json.dumps(messages)

    def __call__(self, **given):
        return given


def test_pictures_belong_to_the_first_turn():
    sample = Sample((png(), png()), "and now?", None, (("what?", "a cat"),))
    first, said, now = messages(sample)
    assert first == {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "what?"}]}
    assert (said["role"], said["content"][0]["text"]) == ("assistant", "a cat")
    assert now == {"role": "user", "content": [{"type": "text", "text": "and now?"}]}


def test_a_batch_is_written_in_the_chat_format(folder):
    samples = [Sample((folder / "red.png",), "a?"), Sample((png("blue"), png()), "b?")]
    writer = Writer()
    writer.chat_template = "some"
    batch = inputs(writer, samples)
    assert [json.loads(text) for text in batch["text"]] == [messages(sample) for sample in samples]
    assert [[image.getpixel((0, 0)) for image in images] for images in batch["images"]] == [
        [(255, 0, 0)],
        [(0, 0, 255), (255, 0, 0)],
    ]
    assert (batch["padding"], batch["padding_side"]) == (True, "left")


def test_pictures_are_upright_and_in_rgb():
    out, tag = io.BytesIO(), Image.Exif()
    tag[0x0112] = 6  # stored lying on its side
    Image.new("RGBA", (6, 4), "red").save(out, "png", exif=tag)
    picture = opened(out.getvalue())
    assert (picture.size, picture.mode) == ((4, 6), "RGB") and opened(picture) is picture


def test_without_a_chat_format_pictures_stand_before_the_question():
    assert inputs(Writer(), [Sample((png(), png()), "a?")])["text"] == ["<i><i>a?"]
    with pytest.raises(UnsupportedError, match="chat template"):
        inputs(Writer(), [Sample((png(),), "a?", None, (("b?", "c"),))])


# -- scoring -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "same", "inside"),
    [
        ("  Two  dogs. ", "two dogs", True, True),
        ("two dogs", ("a cat", "Two dogs!"), True, True),
        ("There are two dogs here", "two dogs", False, True),
        ("I know", "no", False, False),
        ("No, it is not", "no", False, True),
        ("3.5", "3", False, True),
        ("a+b", "a+b", True, True),
        ("", "a", False, False),
        ("a", None, False, False),
    ],
)
def test_scores(said, answer, same, inside):
    sample = SimpleNamespace(answer=answer)
    assert exact(said, sample) is same and contains(said, sample) is inside


def test_the_score_follows_from_what_is_known(folder):
    known = {"image": "red.png", "question": "?", "answer": "red"}
    path = str(written(folder, known, known))
    task, score = task_of(path)
    assert score == "exact" and task.name == "some.jsonl" and len(task.samples) == 2
    assert task_of(path, "contains")[0].correct("it is red", task.samples[0])
    assert not task.correct("it is red", task.samples[0])
    path = str(written(folder, known, {"image": "red.png", "question": "?"}))
    assert task_of(path)[1] == "agreement"
    with pytest.raises(UnsupportedError, match=r"line 2 .*column answer"):
        task_of(path, "exact")
    with pytest.raises(UnsupportedError, match="--score wer"):
        task_of(path, "wer")
    with pytest.raises(UnsupportedError, match="no samples"):
        task_of(str(written(folder, "")))


def test_the_testbed_is_a_task_of_all_its_slices(monkeypatch):
    from foveate import testbed
    from foveate.bench.tasks import testbed_task

    some = testbed_task(limit=4)
    monkeypatch.setattr("foveate.bench.advice.data.testbed_task", lambda: some)
    task, score = task_of("testbed")
    assert score == "exact" and list(task.samples) == list(some.samples) and task.slices() == list(testbed.SLICES)
    drawn = [[sample.id for sample in task_of("testbed", limit=20, seed=seed)[0].samples] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 20
