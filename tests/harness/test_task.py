"""The exported task: the runner's questions in the runner's order, pixel for pixel, with functions that score as it does."""

import io
import json
import sys
from importlib.util import find_spec

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate import testbed
from foveate.cli import app
from foveate.errors import MissingExtraError
from foveate.harness import task

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed (extra eval)")


def row(sample):
    return {
        "id": sample.id, "slice": sample.slice, "images": sample.images, "question": sample.question,
        "target": sample.answer, "history": json.dumps(sample.history),
    }  # fmt: skip


def test_messages_are_the_testbeds(samples):
    for sample in samples:
        plain = testbed.messages(sample)
        for message in plain:
            message["content"] = [{"type": "image"} if c["type"] == "image" else c for c in message["content"]]
        assert task.messages(row(sample)) == plain
        urls = [
            c["url"] for m in task.messages_with_pictures(row(sample)) for c in m["content"] if c["type"] == "image"
        ]
        assert [url.tobytes() for url in urls] == [image.tobytes() for image in sample.images]


def test_texts_and_scores(samples):
    later = samples[-1]
    assert later.history and task.text(row(later)).splitlines()[-1] == later.question
    assert task.text(row(later)).count("\n") == 2 * len(later.history)
    one = samples[0]
    assert task.text(row(one)) == one.question
    assert task.results(row(one), [f" {one.answer.upper()} "]) == {"accuracy": 1.0, one.slice: 1.0}
    assert task.results(row(one), ["something else"]) == {"accuracy": 0.0, one.slice: 0.0}


@pytest.mark.parametrize("module", ["datasets", "pyarrow.parquet"])
def test_the_extra_is_named_if_it_is_missing(module, tmp_path, monkeypatch):
    if module != "datasets" and find_spec("datasets") is None:
        pytest.skip("datasets is not installed (extra eval)")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"foveate\[eval\]"):
        task.export(tmp_path / "out")
    done = CliRunner().invoke(app, ["testbed", "export", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "foveate[eval]" in done.stderr and not (tmp_path / "out").exists()


@needs_datasets
def test_the_folder_holds_the_runners_questions(tmp_path):
    import pyarrow.parquet
    import yaml

    out = tmp_path / "a folder"
    done = CliRunner().invoke(app, ["testbed", "export", "--out", str(out), "--limit", "2"])
    assert done.exit_code == 0 and "22 questions" in done.stdout
    samples = testbed.samples(None, 2)
    found = pyarrow.parquet.read_table(out / task.DATA).to_pylist()
    assert [one["id"] for one in found] == [s.id for s in samples]
    for one, sample in zip(found, samples, strict=True):
        pictures = [Image.open(io.BytesIO(image["bytes"])) for image in one["images"]]
        assert [p.tobytes() for p in pictures] == [image.tobytes() for image in sample.images]
        assert json.loads(one["history"]) == [list(turn) for turn in sample.history]
        assert (one["slice"], one["question"], one["target"]) == (sample.slice, sample.question, sample.answer)

    class Loader(yaml.SafeLoader):
        """As lmms-eval reads it."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    page = yaml.load((out / f"{task.NAME}.yaml").read_text(), Loader)
    assert page["dataset_kwargs"]["data_files"]["test"] == str(out / task.DATA)
    assert [m["metric"] for m in page["metric_list"]] == ["accuracy", *testbed.SLICES]
    functions = {}
    exec((out / task.FUNCTIONS).read_text(), functions)
    for value in page.values():
        if isinstance(value, str) and value.startswith("utils."):
            assert callable(functions[value.removeprefix("utils.")])


@needs_datasets
def test_datasets_reads_pictures_and_slices_can_be_chosen(tmp_path):
    import datasets

    assert task.export(tmp_path, ["chart", "two-images"], 1) == 2
    files = {"test": str(tmp_path / task.DATA)}
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["test"]
    assert table["slice"] == ["chart", "two-images"] and [len(images) for images in table["images"]] == [1, 2]
    assert all(isinstance(image, Image.Image) for images in table["images"] for image in images)
    with pytest.raises(ValueError, match="unknown slice"):
        task.export(tmp_path, ["cats"])
