"""Samples of the user's own: lines of a JSONL file or rows of a parquet file, as prompts of a model, and how answers are scored.

A row has the columns ``image`` (a path relative to the file, or in parquet also the file's bytes, or a list of these),
``question``, and where they are known ``answer`` (a text, or a list of texts that all count), ``slice`` (a name) and
``history`` (turns before the question, [[question, answer], ...]).
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UnsupportedError, require
from ..tasks import Task, testbed_task

if TYPE_CHECKING:
    from PIL.Image import Image

FORM = '{"image": "a.png", "question": "What is this?", "answer": "a cat"}'
COLUMNS = ("image", "question", "answer", "slice", "history")
SCORES = ("exact", "contains", "agreement")


@dataclass(frozen=True)
class Sample:
    """One question of a file.

    Attributes:
        images: paths of pictures, or the bytes of their files.
        question: what is asked now.
        answer: the right answer, or several of which any counts; None if it is not known.
        history: questions and answers before, the pictures belong to the first.
        slice: what kind of question it is.
        where: file and line, for errors.
    """

    images: tuple[Path | bytes, ...]
    question: str
    answer: str | tuple[str, ...] | None = None
    history: tuple[tuple[str, str], ...] = ()
    slice: str = "all"
    where: str = field(default="", compare=False)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_samples(path: Path, limit: int | None = None, seed: int = 0) -> list[Sample]:
    """The samples of a JSONL or parquet file, in its order.

    Args:
        path: a file; its name ends in .parquet if it is one.
        limit: read at most this many, drawn by chance; all rows when None.
        seed: of that draw.

    Raises:
        UnsupportedError: if there is no such file, or a row is no sample; says which row and column.
        MissingExtraError: if a parquet file cannot be read for lack of pyarrow.
    """
    if not path.is_file():
        raise UnsupportedError(f"--data {path} is no file", hint=f"testbed, or a file with lines such as {FORM}")

    def chosen(total: int) -> set[int]:
        return set(range(total) if limit is None else random.Random(seed).sample(range(total), min(limit, total)))

    rows = _parquet if path.suffix == ".parquet" else _lines
    return [_sample(row, where, path.parent) for where, row in rows(path, chosen)]


Chosen = Callable[[int], set[int]]


def _lines(path: Path, chosen: Chosen) -> Iterator[tuple[str, Any]]:
    """Where each row is, and the row. All lines have to be JSON, whether they are chosen or not."""
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{path} is not text in UTF-8: {error}", hint="JSONL, or a name in .parquet") from error
    for number, line in enumerate(text.splitlines(), 1):
        where = f"line {number} of {path}"
        if line.strip():
            try:
                found.append((where, json.loads(line)))
            except ValueError as error:
                raise UnsupportedError(f"{where} is not JSON: {error}", hint=FORM) from error
    few = chosen(len(found))
    return (row for i, row in enumerate(found) if i in few)


def _parquet(path: Path, chosen: Chosen) -> Iterator[tuple[str, Any]]:
    module = require("pyarrow.parquet", "eval")
    try:
        file = module.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UnsupportedError(f"{path} is not a parquet file: {error}") from error
    few, start = chosen(file.metadata.num_rows), 0
    columns = [name for name in COLUMNS if name in file.schema_arrow.names]
    for batch in file.iter_batches(batch_size=64, columns=columns):
        for i in range(batch.num_rows):
            if start + i in few:
                yield f"row {start + i + 1} of {path}", batch.slice(i, 1).to_pylist()[0]
        start += batch.num_rows


def _sample(row: Any, where: str, folder: Path) -> Sample:
    if not isinstance(row, dict):
        raise UnsupportedError(f"{where} is no sample: {row!r}", hint=FORM)

    def bad(column: str, why: str, hint: str = FORM) -> UnsupportedError:
        return UnsupportedError(f"{where}, column {column}: {why}", hint=hint)

    given = row.get("image")
    if given is None or (isinstance(given, list) and not given):
        raise bad("image", f"no picture; the columns are {', '.join(map(str, row)) or 'none'}")
    pictures = []
    for one in given if isinstance(given, list) else [given]:
        kept = one.get("bytes") or one.get("path") if isinstance(one, dict) else one
        if isinstance(kept, str):
            kept = folder / kept
            if not kept.is_file():
                raise bad("image", f"there is no picture {kept}", "a path relative to the file")
        elif not isinstance(kept, bytes):
            raise bad("image", f"{_short(one)} is neither a path nor the bytes of a picture")
        try:
            _header(kept)
        except (OSError, ValueError) as error:
            raise bad("image", f"Pillow cannot read it: {error}", "a picture file, such as PNG or JPEG") from error
        pictures.append(kept)
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise bad("question", f"{_short(question)} is no question")
    answer = row.get("answer")
    accepted = [_answer(one) for one in (answer if isinstance(answer, list) else [answer])]
    if answer is not None and (None in accepted or not accepted):
        raise bad(
            "answer", f"{_short(answer)} is neither a text nor a list of texts", "leave it out if it is not known"
        )
    slice = row.get("slice")
    if slice is not None and not isinstance(slice, str):
        raise bad("slice", f"{_short(slice)} is no name")
    turns = row.get("history") or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns
    ):
        raise bad("history", f"{_short(turns)} are no turns", '"history": [["What is this?", "a cat"]]')
    known = None if answer is None else accepted[0] if not isinstance(answer, list) else tuple(accepted)
    history = tuple((asked, said) for asked, said in turns)
    return Sample(tuple(pictures), question, known, history, slice or "all", where)  # type: ignore[arg-type]


def _answer(value: Any) -> str | None:
    """A text, also of a number (JSON writes "3" as 3 easily); true and false could be meant as yes or as true."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not plain(str(value)):
        return None
    return str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _header(picture: Path | bytes) -> Image:
    """The picture, of which only the header is read."""
    from PIL import Image

    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def opened(picture: Path | bytes | Image) -> Image:
    """A picture of a sample, upright and in RGB; one that is open already stays as it is."""
    from PIL import ImageOps

    if not isinstance(picture, Path | bytes):
        return picture
    return ImageOps.exif_transpose(_header(picture)).convert("RGB")


# -- prompts -----------------------------------------------------------------------------------------------------------


def inputs(processor: Any, samples: Sequence[Sample]) -> Any:
    """A left-padded batch of prompts for ``model.generate``, in the processor's chat format if it has one.

    Raises:
        UnsupportedError: if a sample has turns before its question and the processor has no chat format.
    """
    texts = []
    for sample in samples:
        if getattr(processor, "chat_template", None):
            texts.append(processor.apply_chat_template(messages(sample), add_generation_prompt=True, tokenize=False))
        elif sample.history:
            raise UnsupportedError(
                "the processor has no chat template to write earlier turns with", where=sample.where, hint="no history"
            )
        else:
            texts.append(getattr(processor, "image_token", "<image>") * len(sample.images) + sample.question)
    pictures = [[opened(one) for one in s.images] for s in samples]
    return processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt")


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The conversation up to the question, for ``processor.apply_chat_template``; the pictures come first."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    found: list[dict[str, Any]] = []
    for question, answer in sample.history:
        found.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        content = []
    return [*found, {"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}]


# -- scoring -----------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A text without what two equal answers may differ in: case, space, and punctuation at its end."""
    return " ".join(text.casefold().split()).rstrip(".,;:!? ")


def exact(said: str, sample: Any) -> bool:
    """Whether what was said is an accepted answer, but for case, space and final punctuation."""
    return plain(said) in map(plain, _accepted(sample))


def contains(said: str, sample: Any) -> bool:
    """Whether an accepted answer stands in what was said, as whole words; case and space do not count."""
    text = plain(said)
    return any(re.search(rf"(?<!\w){re.escape(plain(one))}(?!\w)", text) for one in _accepted(sample))


def _accepted(sample: Any) -> Sequence[str]:
    return (sample.answer,) if isinstance(sample.answer, str) else sample.answer or ()


def task_of(data: str, score: str | None = None, limit: int | None = None, seed: int = 0) -> tuple[Task, str]:
    """The task that ``--data`` and ``--score`` ask for, and the score that is in force.

    Args:
        data: "testbed", or the path of a JSONL or parquet file.
        score: one of :data:`SCORES`; None is exact where every answer is known, else agreement with the uncompressed model.
        limit: at most this many samples, drawn by chance.
        seed: of that draw.

    Raises:
        UnsupportedError: on an unknown score, on data that hold no samples (see :func:`read_samples`), or where a score needs
            an answer that is missing.
    """
    if score is not None and score not in SCORES:
        raise UnsupportedError(f"--score {score}", hint=", ".join(SCORES))
    if data == "testbed":
        task = testbed_task()
        if limit is not None and limit < len(task.samples):
            some = sorted(random.Random(seed).sample(range(len(task.samples)), limit))
            task = replace(task, samples=[task.samples[i] for i in some])
    else:
        found = read_samples(Path(data), limit, seed)
        if not found:
            raise UnsupportedError(f"{data} holds no samples", hint=f"lines such as {FORM}")
        task = Task(Path(data).name, found, inputs, exact, f"Measured on samples of {data}.")
    missing = [sample for sample in task.samples if sample.answer is None]
    if score in ("exact", "contains") and missing:
        raise UnsupportedError(
            f"{missing[0].where}, column answer: --score {score} needs an answer to every question",
            hint="--score agreement, which compares with what the uncompressed model says",
        )
    score = score or ("agreement" if missing else "exact")
    return replace(task, correct=contains if score == "contains" else exact), score
