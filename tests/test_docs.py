"""The generator of pages: what it writes between marks, how it counts costs, and that it notices stale pages."""

from __future__ import annotations

import pytest
import torch

from foveate import View, registry
from tools import gen_docs


def test_text_between_marks_is_replaced_and_nothing_else():
    text = "a\n<!-- x:start -->\nold\n<!-- x:end -->\nb\n"
    new = gen_docs.between(text, "x", "| new |")
    assert new == "a\n<!-- x:start -->\n\n| new |\n\n<!-- x:end -->\nb\n"
    assert gen_docs.between(new, "x", "| new |") == new
    with pytest.raises(SystemExit, match="x:start"):
        gen_docs.between("no marks", "x", "new")


def test_tables_escape_what_would_end_a_cell():
    assert gen_docs.table(["a"], [["1 | 2"]]) == "| a |\n| --- |\n| 1 \\| 2 |\n"


def test_docstrings_become_markdown():
    assert gen_docs.markdown("asks :meth:`Resize.grid`, and ``code``") == "asks `Resize.grid`, and `code`"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("random", "no matrix product; no n x n"),
        ("divprune", "0.67 of one n x n x d product; an n x n matrix is formed"),
    ],
)
def test_costs_are_counted(name, says):
    assert says in gen_docs.cost(registry.get(name))


def test_a_stale_page_fails_the_check(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("old")
    monkeypatch.setattr(gen_docs, "ROOT", tmp_path)
    monkeypatch.setattr(gen_docs, "pages", lambda: {page: "new"})
    monkeypatch.setattr("sys.argv", ["gen_docs.py", "--check"])
    assert gen_docs.main() == 1 and page.read_text() == "old"
    assert "page.md is stale" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["gen_docs.py"])
    assert gen_docs.main() == 0 and page.read_text() == "new"


def test_every_method_has_a_page():
    made = {path.stem for path in gen_docs.pages() if path.parent.name == "methods"}
    assert made == {"index", *gen_docs.method_classes()}


def test_the_example_method_finds_an_edge():
    from examples.own_method import Edges

    x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
    assert Edges()(View.on_grid(x, 1, 1, 4)).anchor.tolist() == [1]
    assert Edges()(View.on_grid(x, 2, 2, 2)).anchor.tolist() == [0, 1]  # the edge lies between two rows: no score
