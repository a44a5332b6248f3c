"""`foveate flops`: from a model, or a size without one, to a table and plain data."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from foveate.bench import hollow
from foveate.cli import app
from foveate.cli.flops import _columns


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in ("flops", *words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from foveate.testbed.model import build_model
    from foveate.testbed.text import build_processor

    path = tmp_path_factory.mktemp("model")
    build_model().save_pretrained(path)
    build_processor().save_pretrained(path)
    return path


@pytest.fixture
def small(monkeypatch):
    from foveate.bench.times.speed import Shape, build

    config = build(Shape(layers=2, width=64, heads=2, kv_heads=1, vocab=32000)).config
    monkeypatch.setitem(hollow.SHAPES, "small", lambda: config)


def test_a_model_and_noise(folder):
    done = invoke(folder, "--plan", "norm", "--keep", "0.25", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["plan"] == "norm:keep=25%" and found["weights"] and found["pictures"] == "noise, 1"
    assert found["uncompressed"]["columns"][0] - found["columns"][0] == 432
    assert found["tower"] == found["uncompressed"]["tower"] and 0 < found["ratio"] < 1


def test_pictures_of_ones_own_and_a_table(folder, tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (300, 200), "red").save(path)
    done = invoke(folder, "--plan", "vtw:layer=2", "--image", path, "--image", path)
    assert done.exit_code == 0, done.output
    for words in ("tower", "connector", "decoder layers", "choosing", "one decoding step", "total", "(0-1)"):
        assert words in done.stdout
    assert "2 x multiply-adds" in done.stdout and "noise" not in done.stdout


def test_a_size_without_weights(small):
    done = invoke("--shape", "small", "--plan", "divprune:keep=0.5", "--images", 2, "--text", 10, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"] == "small" and not found["weights"]
    assert found["columns"] == [586, 586] and found["method"] > 0
    shown = invoke("--shape", "small", "--plan", "norm:keep=0.5")
    assert "without its weights" in shown.stdout and "noise" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--plan", "norm:keep=9"], "either a model or --shape"),
        (["testbed", "--shape", "llava-1.5-7b", "--plan", "norm:keep=9"], "either a model or --shape"),
        (["--shape", "llava-2", "--plan", "norm:keep=9"], "llava-1.5-7b"),
        (["/nowhere", "--plan", "nrom:keep=9"], "norm"),
        (["/nowhere", "--plan", "norm"], "no budget"),
    ],
)
def test_mistakes_are_named(words, says):
    done = invoke(*words)
    assert done.exit_code == 2 and says in done.stderr


def test_pictures_and_a_shape(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    done = invoke("--shape", "llava-1.5-7b", "--plan", "norm:keep=9", "--image", path)
    assert done.exit_code == 2 and "--image" in done.stderr


def test_layers_with_equal_columns_are_told_together():
    assert _columns([640, 640, 237, 100, 100]) == "640 (0-1), 237 (2), 100 (3-4)"
