"""The testbed as a task of lmms-eval that needs no network, and as a table of rows for anything else.

:func:`export` writes a folder with the questions (parquet), the task (YAML) and the functions that it names, which are those
below. Scores come for the whole and for each slice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import require

NAME = "foveate_testbed"
DATA, FUNCTIONS = "testbed.parquet", "utils.py"

_YAML = """\
# {note}
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
  token: false
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: target
process_results: !function utils.results
generation_kwargs:
  max_new_tokens: 10
  do_sample: false
metric_list:
{metrics}
metadata:
  - version: 1
"""
_METRIC = "  - metric: {name}\n    aggregation: mean\n    higher_is_better: true"
_UTILS = '''\
"""The functions that {name}.yaml names; they are part of Foveate."""

from foveate.harness.task import results, text, visual
from foveate.harness.task import messages_with_pictures as messages
'''


def export(out: str | Path, slices: Sequence[str] | None = None, limit: int | None = None) -> int:
    """Write the testbed's questions as a task of lmms-eval.

    The parquet file has the columns id, slice, images (a list of pictures), question, target, history (earlier questions
    with their answers, as JSON) and chance, in the order in which :mod:`foveate.bench.runner` asks. Its pictures are PNG,
    pixel for pixel those of the package.

    Args:
        out: folder; what is there under these names is written again. The task names its data by absolute path, so
            export again rather than move the folder.
        slices: names, or None for all.
        limit: questions per slice, or None for all.

    Returns:
        The number of questions.

    Raises:
        MissingExtraError: without the datasets library.
    """
    from ..bench.tasks import testbed_task

    datasets, parquet = require("datasets", "eval"), require("pyarrow.parquet", "eval")
    task = testbed_task(slices, limit)
    order = task.slices()
    rows = [
        {
            "id": sample.id,
            "slice": sample.slice,
            "images": [{"bytes": _png(image), "path": None} for image in sample.images],
            "question": sample.question,
            "target": sample.answer,
            "history": json.dumps(sample.history),  # lists in lists are not every reader's strength
            "chance": sample.chance,
        }
        for sample in sorted(task.samples, key=lambda s: order.index(s.slice))
    ]
    text, number = datasets.Value("string"), datasets.Value("float64")
    features = {"id": text, "slice": text, "images": [datasets.Image()], "question": text, "target": text}
    features |= {"history": text, "chance": number}
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.data.table, folder / DATA)
    metrics = "\n".join(_METRIC.format(name=name) for name in ("accuracy", *order))
    about = f"{len(rows)} questions of the testbed. {task.note}"
    page = _YAML.format(name=NAME, note=about, data=json.dumps(str(folder / DATA)), metrics=metrics)
    (folder / f"{NAME}.yaml").write_text(page)
    (folder / FUNCTIONS).write_text(_UTILS.format(name=NAME))
    return len(rows)


def messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a row up to its question, ``{"type": "image"}`` where a picture goes.

    The same as :func:`foveate.testbed.messages` makes of a sample; for ``Answer(messages=...)``.
    """
    from .. import testbed

    sample = testbed.Sample("", "", list(row["images"]), row["question"], "", json.loads(row["history"]))
    told = testbed.messages(sample)
    for message in told:
        message["content"] = [{"type": "image"} if c["type"] == "image" else c for c in message["content"]]
    return told


# -- what the exported task calls ----------------------------------------------------------------------------------------


def messages_with_pictures(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A document's conversation as lmms-eval wants it: pictures under "url"."""
    told, pictures = messages(doc), iter(visual(doc))
    for message in told:
        message["content"] = [
            {"type": "image", "url": next(pictures)} if c["type"] == "image" else c for c in message["content"]
        ]
    return told


def visual(doc: Mapping[str, Any]) -> list[Any]:
    """A document's pictures, in RGB."""
    return [image.convert("RGB") for image in doc["images"]]


def text(doc: Mapping[str, Any]) -> str:
    """What is asked, after what was said before; for models of lmms-eval that know no conversations."""
    return "\n".join([*(line for turn in json.loads(doc["history"]) for line in turn), doc["question"]])


def results(doc: Mapping[str, Any], said: Sequence[str]) -> dict[str, float]:
    """1.0 for a right answer, under "accuracy" and under the name of its slice."""
    from .. import testbed

    sample = testbed.Sample("", doc["slice"], [], doc["question"], doc["target"])
    right = float(testbed.correct(said[0], sample))
    return {"accuracy": right, doc["slice"]: right}


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
