"""Sphinx configuration. Built with -W: a warning is an error."""

import re
from pathlib import Path

import foveate

project = "Foveate"
author = "The Foveate authors"
copyright = author
version = release = foveate.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "extra"]
html_extra_path = ["extra"]  # pages that are made elsewhere
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "html_image"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of dataclasses are described once, by their docstring

html_theme = "furo"
html_title = f"Foveate {version}"
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

CARD = Path(foveate.__file__).parent / "testbed" / "model" / "README.md"


def show_card(app, docname, source):
    """Put the card of the shipped weights on the testbed's page, its headings two levels down."""
    if docname == "testbed":
        text = CARD.read_text() if CARD.exists() else "This checkout has no weights."
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
        source[0] = source[0].replace("<!-- model-card -->", re.sub(r"^#", "###", text, flags=re.MULTILINE))


def one_by_one(app, what, name, obj, options, lines):
    """Let each name have an entry of its own where ``Attributes`` or ``Args`` list several: ``row, col: (n,) place``."""
    out, i = [], 0
    while i < len(lines):
        start = re.match(r"( +)(\w+(?:, \w+)+): ", lines[i])
        i += 1
        if not start:
            out.append(lines[i - 1])
            continue
        entry = [lines[i - 1][start.end() :]]
        while i < len(lines) and lines[i].startswith(start[1] + " "):
            entry.append(lines[i])
            i += 1
        for one in start[2].split(", "):
            out += [f"{start[1]}{one}: {entry[0]}", *entry[1:]]
    lines[:] = out


def setup(app):
    app.connect("autodoc-process-docstring", one_by_one, priority=400)  # before napoleon
    app.connect("source-read", show_card)
