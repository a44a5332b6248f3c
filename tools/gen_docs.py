"""Writes the pages that follow from the code: methods, families, the command line, and the tables of README.md.

    python tools/gen_docs.py            write them
    python tools/gen_docs.py --check    only say which are stale, and fail if one is

Methods come from their cards and docstrings, families from adapters attached to tiny models of the tests, commands from
the command line itself. What a method costs is counted while it runs on a synthetic view, so that nobody has to claim it.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- Made by tools/gen_docs.py from the code: change that, then run `make generate`. -->\n\n"
N, D, K = 576, 1024, 64  # the view on which costs are counted: LLaVA-1.5's tokens, kept at a ninth
HEADS, KEY_WIDTH, QUESTION, VOCABULARY = 16, 64, 12, 32000


def main() -> int:
    """Write the pages, or check them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args().check
    stale = []
    for path, text in sorted(pages().items()):
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        stale.append(path)
        if check:
            diff = difflib.unified_diff(old.splitlines(), text.splitlines(), "committed", "generated", lineterm="", n=0)
            print(f"{path.relative_to(ROOT)} is stale:", *list(diff)[2:14], sep="\n  ")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        if path not in pages():
            stale.append(path)
            if check:
                print(f"{path.relative_to(ROOT)} belongs to no method")
            else:
                path.unlink()
                print(f"removed {path.relative_to(ROOT)}")
    if check and stale:
        print("run `make generate`", file=sys.stderr)
    return int(check and bool(stale))


_pages: dict[Path, str] = {}


def pages() -> dict[Path, str]:
    """Every generated file with its whole text."""
    if not _pages:
        docs, readme = ROOT / "docs", ROOT / "README.md"
        methods = method_classes()
        rows = family_rows()
        _pages[docs / "methods" / "index.md"] = methods_page(methods)
        for name, cls in methods.items():
            _pages[docs / "methods" / f"{name}.md"] = method_page(cls)
        _pages[docs / "families.md"] = families_page(rows)
        _pages[docs / "cli.md"] = cli_page()
        serving = docs / "serving.md"
        _pages[serving] = between(serving.read_text(), "load", load_table())
        text = between(readme.read_text(), "methods", methods_table(methods, "docs/methods/"))
        _pages[readme] = between(text, "families", families_line(rows))
    return _pages


def between(text: str, name: str, new: str) -> str:
    """``text`` with what stands between the marks ``name:start`` and ``name:end`` replaced."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise SystemExit(f"README.md needs {start} and {end}, once each")
    head, rest = text.split(start)
    return f"{head}{start}\n\n{new.strip()}\n\n{end}{rest.split(end)[1]}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]]) + "\n"


# -- methods -----------------------------------------------------------------------------------------------------------


def method_classes() -> dict[str, Any]:
    """The package's own methods; plug-ins that happen to be installed have pages of their own."""
    from foveate import registry

    return {name: cls for name, cls in registry.classes().items() if cls.__module__.startswith("foveate.methods.")}


NEED = {
    "attention": "attention rows of one tower block",
    "early": "attention rows of an earlier tower block",
    "keys": "keys of one tower block",
    "question": "embeddings of the question",
    "values": "value vectors of one tower block",
    "value_attention": "how much value vectors of one tower block resemble the CLS token's",
    "pixels": "the pixels of each patch",
    "vocabulary": "the language model's word embeddings",
    "first": "the image's tokens as they entered the language model",
    "first_text": "the text after the image as it entered",
    "last_row": "the last prompt token's attention in the layer before",
    "ahead_row": "the last prompt token's attention, as the next layer will compute it",
    "text_rows": "the attention of the text after the image in the layer before",
    "text_text": "what the text after the image attends to among itself in the layer before",
    "text": "states of the text after the image",
    "layer_keys": "keys of the layer before",
    "text_keys": "keys of the text after the image in the layer before",
    "window_rows": "the attention of the prompt's last tokens in every layer",
    "query": "the last prompt token's query, and all keys, in one layer",
    "received": "the attention that every entry receives from all tokens, in every layer",
}
COUNT = {
    "fixed": "exactly the budget",
    "grid": "the nearest grid within the budget",
    "content": "decided by the input",
}
BUDGET = {
    "left": "the tokens that are left at the end",
    "mean": "the mean over the language model's layers",
    "entries": "entries of the cache, text included, for each key head",
}
STAGE = {
    "input": "before the tower",
    "encoder": "in the tower",
    "connector": "before the language model",
    "layers": "in the language model",
    "cache": "in the cache",
}


def paper_link(paper: str) -> str:
    """A card's paper as a link."""
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return paper or "baseline"


def methods_table(methods: dict[str, Any], folder: str) -> str:
    """One row per method."""
    rows = []
    for name, cls in methods.items():
        card = cls.card
        needs = ", ".join(card.needs) or "tokens only"
        where = ", ".join(card.stages)
        rows.append([f"[`{name}`]({folder}{name}.md)", card.title, paper_link(card.paper), where, needs, card.count])
    return table(["method", "what it is", "paper", "stage", "looks at", "count"], rows)


def methods_page(methods: dict[str, Any]) -> str:
    """The overview."""
    names = "\n".join(methods)
    stages = "\n".join(f"- `{stage}`: {words}" for stage, words in STAGE.items())
    question = next(iter(captions().values()), {}).get("question", "")
    return f"""{MADE}# Methods

## What they keep

One picture of [the testbed](../testbed.md), 64 of 576 tokens; the question is "{question}". Kept tokens are lit, dropped ones
dimmed; tinted places were merged into a kept token before the language model. Between its layers the tokens are those that run
last; methods that change what layers do, or the cache, drop none.

{gallery(methods)}
## All of them

{methods_table(methods, "")}
**Count** is how many tokens stay: `fixed` is exactly the budget, `grid` the nearest grid within it, `content` means that
the input decides. **Stage** is where a method runs:

{stages}

**Looks at** is what a method reads besides the tokens themselves. `foveate methods` prints this table,
`foveate method NAME` one card; both take `--json`.

```{{toctree}}
:hidden:

{names}
```
"""


def method_page(cls: Any) -> str:
    """The page of one method."""
    from foveate.cli.catalogue import options_of
    from foveate.method import Method

    card = cls.card
    settled = issubclass(cls, Method) and cls().settled
    summary = (cls.__doc__ or "").split("Attributes:")[0].strip()
    module = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    facts = [
        ["paper", paper_link(card.paper)],
        ["authors' code", f"<{card.code}> ({card.licence or 'no licence given'})" if card.code else "-"],
        ["runs", ", ".join(f"`{s}` ({STAGE[s]})" for s in card.stages)],
        ["sees features", f"{card.features} the connector"],
        ["looks at", "; ".join(NEED[need] for need in card.needs) or "the tokens only"],
        ["guided by the question", {"none": "no", "question": "yes"}[card.guidance]],
        ["keeps", COUNT[card.count]],
        ["`keep` counts", "not needed: its options say what happens" if settled else BUDGET[card.budget]],
        ["touches", {"visual": "visual tokens", "all": "all tokens"}[card.touches]],
        ["positions in the paper", card.positions if card.paper else "-"],
        ["training", card.training],
        ["modality", ", ".join(card.modality)],
        ["mechanism", card.mechanism],
    ]
    options = options_of(cls)
    budget = "" if settled else ", keep=64"
    code = f'with foveate.compress(model, "{card.name}"{budget}) as run:\n    out = model.generate(**inputs)'
    parts = [
        f"{MADE}# {card.name}\n\n**{card.title}**\n",
        markdown(module) + "\n",
        picture(card.name),
        table(["", ""], facts),
        f"## Use\n\n{markdown(inspect.cleandoc(summary))}\n\n```python\n{code}\n```\n",
    ]
    if options:
        rows = [[f"`{o['name']}`", f"`{o['default']}`", o["meaning"] or "-"] for o in options]
        first = options[0]
        parts.append("## Options\n\n" + table(["option", "default", "meaning"], rows))
        keep = "" if settled else "keep=64,"
        parts.append(f"In a plan: `{card.name}:{keep}{first['name']}={first['default']}`.\n")
    if made := cost(cls):
        parts.append(f"## Cost\n\n{made}\n")
    if card.differences:
        heading = "Differences from the paper" if card.paper else "Notes"
        parts.append(f"## {heading}\n\n" + "\n".join(f"- {line}" for line in card.differences) + "\n")
    return "\n".join(parts)


PICTURES = ROOT / "docs" / "methods" / "pictures"


def captions() -> dict[str, Any]:
    """What the pictures of tools/draw_methods.py show."""
    path = PICTURES / "captions.json"
    return json.loads(path.read_text()) if path.exists() else {}


def picture(name: str) -> str:
    """What a method kept of the testbed's picture.

    Raises:
        SystemExit: if there is none, saying how it is made.
    """
    facts = captions().get(name)
    if facts is None or not (PICTURES / f"{name}.png").exists():
        raise SystemExit(f"{name} has no picture: run `make pictures`")
    right = "right" if facts["answer"] == facts["right"] else f"wrong: it is {facts['right']}"
    return (
        f"![the whole picture](pictures/_uncompressed.png) ![what {name} kept](pictures/{name}.png)\n\n"
        f"*One picture of [the testbed](../testbed.md), {facts['tokens_out']} of {facts['tokens_in']} tokens kept. "
        f'"{facts["question"]}": {facts["answer"] or "(nothing)"} ({right}); uncompressed: {facts["uncompressed"]}. '
        f"Kept tokens are lit, dropped ones dimmed; tinted places were merged into a kept token. Sample {facts['sample']}.*\n"
    )


def gallery(methods: dict[str, Any]) -> str:
    """Every method's picture, grouped by what its choice rests on."""
    groups: dict[str, list[str]] = {}
    for name, cls in methods.items():
        groups.setdefault(cls.card.mechanism if cls.card.guidance == "none" else "question", []).append(name)
    parts = []
    for mechanism, names in sorted(groups.items()):
        cells = "\n".join(
            f'[<img src="pictures/{name}.png" alt="{name}: what it kept" title="{name}" width="130px">]({name}.md)'
            for name in names
        )
        parts.append(f"### {GROUP[mechanism]}\n\n{', '.join(f'[`{name}`]({name}.md)' for name in names)}\n\n{cells}\n")
    return "\n".join(parts)


GROUP = {
    "transformation": "By place: pooling, strides, smaller pictures",
    "similarity": "By likeness of tokens",
    "attention": "By attention of the vision tower",
    "query": "By learned queries",
    "question": "By the question",
    "reconstruction": "By reconstruction",
    "text-as-image": "Text as image",
}


def markdown(doc: str) -> str:
    """A docstring's prose as Markdown: references to code become plain code."""
    doc = re.sub(r":(?:class|func|meth|mod|attr|data):`~?([^`]*)`", r"`\1`", doc)
    return doc.replace("``", "`")


def cost(cls: Any) -> str:
    """What choosing costs, counted while the method runs on a synthetic view."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from foveate import Extra, Recipe, Reduction, View
    from foveate.method import CacheMethod, RerunMethod, WorkMethod

    class Square(TorchDispatchMode):
        """Notes whether a matrix with the tokens along both sides is ever made."""

        seen = False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                self.seen |= isinstance(one, torch.Tensor) and sum(side == N for side in one.shape) > 1
            return out

    if issubclass(cls, (Recipe, CacheMethod, RerunMethod, WorkMethod)):
        return ""
    gen = torch.Generator().manual_seed(0)
    extras = {
        "attention": Extra(torch.rand(HEADS, N, generator=gen)),
        "keys": Extra(torch.randn(N, KEY_WIDTH, generator=gen)),
        "question": Extra(torch.randn(QUESTION, D, generator=gen)),
        "early": Extra(torch.rand(HEADS, N, generator=gen)),
        "values": Extra(torch.randn(N, KEY_WIDTH, generator=gen)),
        "value_attention": Extra(torch.rand(HEADS, N, generator=gen)),
        "pixels": Extra(torch.randn(N, 3 * 14 * 14, generator=gen)),
        "vocabulary": Extra(torch.randn(VOCABULARY, D, generator=gen)) if "vocabulary" in cls.card.needs else None,
        "first": Extra(torch.randn(N, D, generator=gen)),
        "first_text": Extra(torch.randn(QUESTION, D, generator=gen)),
        "last_row": Extra(torch.rand(HEADS, N, generator=gen)),
        "ahead_row": Extra(torch.rand(HEADS, N, generator=gen)),
        "text_rows": Extra(torch.rand(HEADS, QUESTION, N, generator=gen)),
        "text_text": Extra(torch.rand(HEADS, QUESTION, QUESTION, generator=gen)),
        "text": Extra(torch.randn(QUESTION, D, generator=gen)),
        "layer_keys": Extra(torch.randn(N, D, generator=gen)),
        "text_keys": Extra(torch.randn(QUESTION, D, generator=gen)),
    }
    card = cls.card
    given: Any = {name: extras[name] for name in card.needs}
    view = View.on_grid(torch.randn(N, D, generator=gen), K, 24, 24, extras=given, layer=16, depth=32)
    square = Square()
    with FlopCounterMode(display=False) as counter, square:
        answer = cls()(view)
    products = counter.get_total_flops() / (2 * N * N * D)
    if products == 0:
        work = "no matrix product"
    elif products < 0.1:
        work = f"matrix products worth {products:.3f} of one n x n x d product"
    else:
        work = f"matrix products worth {products:.2f} of one n x n x d product"
    matrix = "an n x n matrix is formed" if square.seen else "no n x n matrix is formed"
    if isinstance(answer, Reduction):
        made = f"makes {answer.m} tokens"
    else:
        made = "lets all tokens run" if answer is None else f"lets {len(answer.running)} tokens run"
    size = f"On {N} tokens of width {D} with {K} asked for, it {made} with {work}; {matrix}."
    reads = []
    if "attention" in card.needs:
        reads.append(
            "The tower's attention stays as it is (sdpa, flash); of one block the row of the CLS token is computed once "
            "more, or all rows in chunks where there is no CLS token."
        )
    if "keys" in card.needs:
        reads.append("The keys of the same block are read, not computed.")
    if card.stages[0] in ("input", "encoder"):
        reads.append("The tower has fewer tokens to process as well.")
    if {"last_row", "text_rows"} & set(card.needs):
        reads.append("Only the rows it looks at are turned into attention again; sdpa and flash stay on.")
    if "ahead_row" in card.needs:
        reads.append("The next layer's projections run once more, on the tokens that are left.")
    return " ".join([size, *reads])


# -- families ----------------------------------------------------------------------------------------------------------


def family_rows() -> list[dict[str, Any]]:
    """What is true of each tested family, asked of an adapter on a tiny model of its real class."""
    sys.path.insert(0, str(ROOT / "tests"))
    from transformers.utils import logging

    import tiny
    from foveate.errors import UnsupportedError
    from foveate.families import adapt

    logging.set_verbosity_error()
    rows = []
    for name in tiny.FAMILIES:
        model = tiny.build(name)
        family = adapt(model)
        try:
            family.score_attention()
            scores = "attention received" if family.cls_row() is None else "CLS row"
        except UnsupportedError:
            scores = "none"
        file = type(family).__module__.rpartition(".")[2]
        rows.append(
            {
                "class": type(model).__name__,
                "model_type": model.config.model_type,
                "file": "" if file == "base" else f"families/{file}.py",
                "scores": scores,
                "before": family.rowwise is not None,
                "resize": family.resizable,
                "note": family.note,
            }
        )
    return rows


def families_line(rows: list[dict[str, Any]]) -> str:
    """The families in one sentence, for the README."""
    names = ", ".join(f"`{row['model_type']}`" for row in rows)
    return f"{len(rows)} model types are tested, each on a small random instance of its real class: {names}."


def families_page(rows: list[dict[str, Any]]) -> str:
    """The capability table."""
    yes = {True: "yes", False: "no"}
    cells = [
        [
            f"`{row['model_type']}`",
            f"`{row['class']}`",
            f"`{row['file']}`" if row["file"] else "the convention",
            row["scores"],
            yes[row["before"]],
            yes[row["resize"]],
            row["note"] or "-",
        ]
        for row in rows
    ]
    head = ["model type", "class", "adapter", "tower scores", "before the connector", "`resize`", "note"]
    return f"""{MADE}# Model families

{families_line(rows)} `foveate families` lists them too, with `--json` for machines.

{table(head, cells)}
- **adapter**: the file under `src/foveate/` that says what is particular about the family. A model that follows the
  convention of transformers needs none.
- **tower scores**: what methods with `attention` get: the row of the tower's CLS token, or, without one, the attention
  each token receives on average.
- **before the connector**: whether methods that merge before the connector (VisionZip) can do so. Where the connector
  joins several tower tokens into one, their reduction is applied after it, and their card says so.
- **`resize`**: whether the tower takes pictures of another size than it was made for.

Images are compressed in all of them. Video passes untouched, and the report says so. A model that is not in the table is
probed when a plan is attached: if it follows the convention it works, else `UnsupportedError` names what is missing. See
[how to add a family](contributing.md).

Some processors of transformers need torchvision to prepare pictures. Foveate does not: see
[troubleshooting](troubleshooting.md).
"""


# -- the command line --------------------------------------------------------------------------------------------------


LOADS = ("load-foveate", "load-foveate-random", "load-vllm", "load-vllm-1024", "load-vllm-random")


def load_table() -> str:
    """What the load tests in results/ gave, and the commands that made them."""
    rows, commands = [], []
    for name in LOADS:
        result = json.loads((ROOT / "results" / f"{name}.json").read_text())
        server, model = result["server"], result["model"]
        words = shlex.split(result["command"])
        more = f", `{words[words.index('--server-args') + 1]}`" if "--server-args" in words else ""
        label = f"{server['name']}, {model['name']}{more}"
        for row in result["rows"]:
            if row["label"] == "uncompressed":
                plain = row
                continue
            cells = [label, str(row["concurrency"])]
            label = ""
            for metric, unit in (("first_token_p50", 1e3), ("first_token_p95", 1e3), ("requests_per_second", 1)):
                mine, low, high = row[metric], *row[metric]["range"]
                values = [unit * each["median"] for each in (plain[metric], mine)]
                told = " -> ".join(f"{v:.0f}" if unit > 1 else f"{v:.2f}" for v in values)
                cells.append(f"{told} (x{mine['over']:.2f}, {low:.2f} to {high:.2f})")
            assert not row["errors"] and not plain["errors"], f"{name}: there were errors"
            rows.append([*cells, f"{row['rounds']} x {row['requests'] // row['rounds']}"])
        about, threads = result["environment"], server["variables"].get("OMP_NUM_THREADS", "default")
        commands.append(
            f"- `OMP_NUM_THREADS={threads} {result['command']}`: {model['weights']} weights, "
            f"{model['parameters'] / 1e6:.0f} M parameters, {model['dtype']}, {server['name']} {server['version']}, "
            f"transformers {about['transformers']}, {about['cores']} cores of an {about['processor']}"
        )
        for soak in result["soak"]:
            line = soak["line"]
            commands[-1] += (
                f". Memory over {soak['requests']} requests, {soak['label']}: {line['mib_per_100']:+.2f} MiB per 100 "
                f"({line['low']:+.2f} to {line['high']:+.2f})"
            )
        commands[-1] += "."
    head = ["server, model", "clients", "first text p50, ms", "first text p95, ms", "answers per s", "rounds x answers"]
    return table(head, rows) + "\n" + "\n".join(commands)


def cli_page() -> str:
    """Every command with its arguments and options."""
    import typer

    from foveate.cli import app

    root = typer.main.get_command(app)
    return (
        f"""{MADE}# Command line

{sentence(root.help)}

`foveate --help` lists the commands, `foveate COMMAND --help` explains one. Errors go to standard error as three lines
(what, where, what to try) with exit status 2.

{"".join(command_text(command, f"foveate {name}", 2) for name, command in root.commands.items())}""".rstrip()
        + "\n"
    )


def command_text(command: Any, path: str, depth: int) -> str:
    """One command, and those below it."""
    if hasattr(command, "commands"):
        below = "".join(command_text(c, f"{path} {name}", depth + 1) for name, c in command.commands.items())
        return f"{'#' * depth} {path}\n\n{sentence(command.help)}\n\n{below}"
    words = [path]
    rows = []
    for param in command.params:
        is_argument = param.param_type_name == "argument"
        name = param.name.upper() if is_argument else param.opts[0]
        if is_argument:
            words.append(name if param.required else f"[{name}]")
        elif param.required:
            words.append(f"{name} {param.name.upper()}")
        default = param.default
        if isinstance(default, list | tuple):
            default = ", ".join(map(str, default))
        shown = (
            "required"
            if param.required
            else "-"
            if default in (None, False, "", ()) or callable(default)
            else f"`{default}`"
        )
        rows.append([f"`{name}`", shown, sentence(getattr(param, "help", "") or "") or "-"])
    usage = f"```bash\n{' '.join(words)}\n```\n"
    options = "\n" + table(["", "default", "meaning"], rows) if rows else ""
    return f"{'#' * depth} {path}\n\n{sentence(command.help)}\n\n{usage}{options}\n"


def sentence(text: str | None) -> str:
    """Help text as one paragraph."""
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    sys.exit(main())
