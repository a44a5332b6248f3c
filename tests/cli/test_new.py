"""`foveate new`: in a package of its own, a method is found, listed and tested without touching any other file."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from foveate import View
from foveate.cli import app
from foveate.cli import new as new_command  # the function; its module is below

module = sys.modules["foveate.cli.new"]
ROOT = Path(__file__).resolve().parents[2]
NAME = "oddest_of_all"
# What the tests of the contract run on a plug-in of each kind; on one family, where they would on all.
CONTRACT = {
    "score": (["-k", NAME, "tests/contract/test_methods.py"], 20),
    "layer": (
        ["-k", f"{NAME} and (llava or not family)", "tests/contract/test_methods.py", "tests/contract/test_layers.py"],
        20,
    ),
    "cache": (["-k", f"{NAME} and (llava or not family)", "tests/contract/test_cache.py"], 15),
}


def invoke(*words):
    return CliRunner().invoke(app, words)


@pytest.fixture(scope="module", params=CONTRACT)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def package(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp("plug") / "plugin"
    done = invoke("new", NAME, "--package", str(folder), *([] if kind == "score" else ["--kind", kind]))
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def installed(package, tmp_path_factory):
    """What `pip install` leaves behind, without asking pip: the module, and metadata with the entry point."""
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        toml = pytest.importorskip("tomli")
    site = tmp_path_factory.mktemp("site")
    project = toml.loads((package / "pyproject.toml").read_text())["project"]
    for source in (package / "src").iterdir():
        (site / source.name).write_text(source.read_text())
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    return site


def python(site, *words):
    path = os.pathsep.join([str(site), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )


def test_a_package_is_three_files(package):
    files = sorted(str(p.relative_to(package)) for p in package.rglob("*") if p.is_file())
    assert files == ["pyproject.toml", f"src/foveate_{NAME}.py", f"tests/test_{NAME}.py"]


def test_the_plugin_is_found_and_listed(installed):
    done = python(installed, "-m", "foveate.cli", "methods", "--json")
    assert NAME in [card["name"] for card in json.loads(done.stdout)]
    done = python(installed, "-m", "foveate.cli", "method", NAME, "--json")
    assert json.loads(done.stdout)["options"][0]["meaning"]


def test_the_contract_tests_run_on_the_plugin(installed, kind):
    words, least = CONTRACT[kind]
    done = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = next(line for line in done.stdout.splitlines() if " passed" in line)
    assert int(passed.split(" passed")[0].split()[-1]) > least


def test_its_own_test_passes(package, installed):
    done = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(package), str(package))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_nothing_is_overwritten(package):
    file = package / "pyproject.toml"
    file.write_text(file.read_text() + "# mine\n")
    done = invoke("new", NAME, "--package", str(package))
    assert done.exit_code == 2 and "exists" in done.stderr
    assert file.read_text().endswith("# mine\n")


@pytest.mark.parametrize("name", ["Bad", "1st", "with-dash", "class", ""])
def test_names_that_cannot_be(name, tmp_path):
    done = invoke("new", name, "--package", str(tmp_path))
    assert done.exit_code == 2 and "cannot name a method" in done.stderr


def test_a_name_that_is_taken(tmp_path):
    done = invoke("new", "random", "--package", str(tmp_path))
    assert done.exit_code == 2 and "already" in done.stderr


def test_a_kind_that_is_not():
    done = invoke("new", "oddest", "--kind", "tower")
    assert done.exit_code == 2 and "score, layer, cache" in done.stderr


@pytest.mark.parametrize("kind", CONTRACT)
def test_what_it_writes_is_in_order(kind, tmp_path, monkeypatch):
    """Names, imports and form, by the project's own rules."""
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    monkeypatch.setattr(module, "_checkout", lambda: tmp_path)
    assert invoke("new", NAME, "--kind", kind).exit_code == 0
    home = 'lint.isort.known-first-party=["foveate"]'
    for words in (["check", "--config", home], ["format", "--check"]):
        words += [
            "--no-cache",
            "--config",
            str(ROOT / "pyproject.toml"),
            str(tmp_path / "src"),
            str(tmp_path / "tests"),
        ]
        done = subprocess.run([ruff, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


def test_in_a_checkout_it_writes_method_and_test(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_checkout", lambda: tmp_path)
    assert invoke("new", "oddest").exit_code == 0
    method = tmp_path / "src" / "foveate" / "methods" / "oddest.py"
    assert (tmp_path / "tests" / "methods" / "test_oddest.py").exists()
    spec = importlib.util.spec_from_file_location("foveate.methods.oddest", method)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)
    spec.loader.exec_module(loaded)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    assert loaded.Oddest()(View(x, k=1)).anchor.tolist() == [2]
    assert loaded.Oddest.card.name == "oddest"


def test_the_checkout_is_this_one():
    assert module._checkout() == ROOT
    assert callable(new_command)


def test_installed_elsewhere_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "foveate" / "cli" / "new.py"))
    done = invoke("new", "oddest")
    assert done.exit_code == 2 and "--package" in done.stderr
