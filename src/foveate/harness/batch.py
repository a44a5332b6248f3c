"""A function from a batch of pictures and questions to a batch of answers, for ``datasets.map`` and Ray Data.

Both call it with a dictionary of columns and take one back. It is small until it is first called, so that it can be sent
to other processes; each of these then loads the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..plan import Plan

if TYPE_CHECKING:
    from .answering import Answerer, Prompt

FOUND = ("answer", "tokens_before", "tokens_after", "tokens_over_layers")


class Answer:
    """Answer questions about pictures with a model under a plan::

        dataset.map(Answer(plan="divprune:keep=64"), batched=True, batch_size=16)
        dataset.map_batches(Answer, fn_constructor_kwargs={"plan": "divprune:keep=64"}, batch_size=16, ...)  # Ray Data

    A batch comes back with all its columns but the pictures, and four more: ``answer``, ``tokens_before`` and
    ``tokens_after`` (visual tokens of the row's pictures, and what the plan leaves of them in the end) and
    ``tokens_over_layers`` (averaged over the language model's layers). Answers are greedy, and each batch is
    padded by itself, on the left: the same batches give the same answers, whoever makes them.

    Args:
        model: "testbed", a folder, or an id of a model hub.
        plan: as in :func:`foveate.compress`; None for the uncompressed model.
        keep, positions: as there.
        images: column with a row's picture or pictures: Pillow images, bytes of image files, ``{"bytes", "path"}``, paths or
            8-bit arrays; None or an empty list where a row has none.
        question: column with what is asked.
        messages: row -> the whole conversation, for chats that are more than the pictures and then the question. A row is a
            dictionary of the columns; a picture's place in a content list is ``{"type": "image"}``. A function of a
            module can be sent to other processes. The question column need not exist then.
        plans: instead of ``plan``, several of them (None: the uncompressed model). Every row comes back once for each, all
            rows of the first plan first, with a column ``plan`` that says which. Under datasets.map this also takes
            ``remove_columns=dataset.column_names``, since the number of rows changes.
        max_new_tokens: longest answer.
        device: of torch, such as "cuda".
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
        UnsupportedError: a budget or positions without a plan, or both a plan and several.
    """

    def __init__(
        self,
        model: str = "testbed",
        plan: object = None,
        *,
        keep: object = None,
        positions: str | None = None,
        images: str = "images",
        question: str = "question",
        messages: Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None = None,
        plans: Sequence[object] | None = None,
        max_new_tokens: int = 64,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        if plans is not None and (plan is not None or isinstance(plans, str) or not len(plans)):
            raise UnsupportedError(f"plan={plan!r}, plans={plans!r}", hint="one plan, or a list of plans")
        given = [plan] if plans is None else list(plans)
        if (keep is not None or positions is not None) and given == [None]:
            raise UnsupportedError(f"keep={keep!r}, positions={positions!r} without a plan", hint='plan="divprune"')
        self.plans = [None if one is None else Plan.of(one, keep, positions) for one in given]
        self.model, self.device, self.dtype = model, device, dtype
        self.images, self.question, self.several = images, question, plans is not None
        self.messages, self.max_new_tokens = messages, max_new_tokens
        self._answerer: Answerer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a batch.

        Args:
            batch: columns by name, all of one length.

        Returns:
            The columns but the pictures, and the new ones as lists.

        Raises:
            UnsupportedError: a column that is missing, of another length, already there, or holds something else than it
                should; or a model that cannot be compressed this way.
        """
        count = self._checked(batch)
        prompts = [self._prompt(batch, i) for i in range(count)]
        found: dict[str, list[Any]] = {name: [] for name in (*(["plan"] if self.several else []), *FOUND)}
        for plan in self.plans:
            said = self._loaded().answer(prompts, plan, max_new_tokens=self.max_new_tokens)
            for one in said:
                values = (one.text, one.before, one.after, one.over_layers)
                for name, value in zip(FOUND, values, strict=True):
                    found[name].append(value)
            if self.several:
                found["plan"] += [_name(plan)] * count
        rest = {name: column for name, column in batch.items() if name != self.images}
        if self.several:
            rest = {name: list(column) * len(self.plans) for name, column in rest.items()}
        return rest | found

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the model: whoever gets a copy loads its own."""
        return self.__dict__ | {"_answerer": None}

    def __repr__(self) -> str:
        return f"<Answer of {self.model}, {', '.join(map(_name, self.plans))}>"

    def _loaded(self) -> Answerer:
        from .answering import Answerer

        if self._answerer is None:
            self._answerer = Answerer(self.model, self.device, self.dtype)
        return self._answerer

    def _checked(self, batch: Mapping[str, Any]) -> int:
        """The number of rows."""
        if not isinstance(batch, Mapping):
            raise UnsupportedError(
                f"a batch is a dictionary of columns, not a {type(batch).__name__}",
                where=repr(self),
                hint='datasets: batched=True; Ray Data: batch_format="numpy", its default',
            )
        wanted = [self.images, *([] if self.messages else [self.question])]
        if missing := [name for name in wanted if name not in batch]:
            raise UnsupportedError(
                f"no column {' nor '.join(map(repr, missing))}; the batch has {', '.join(map(repr, batch))}",
                where=repr(self),
                hint='name yours: Answer(images="picture", question="prompt")',
            )
        if taken := [name for name in (*FOUND, *(["plan"] if self.several else [])) if name in batch]:
            raise UnsupportedError(
                f"the batch has a column {taken[0]!r} already", where=repr(self), hint="rename or remove it"
            )
        for name in wanted:
            if isinstance(batch[name], (str, bytes, Mapping)) or not hasattr(batch[name], "__len__"):
                raise UnsupportedError(
                    f"column {name!r} is a single {type(batch[name]).__name__}, not a list",
                    where=repr(self),
                    hint="map with batched=True",
                )
        lengths = {name: len(batch[name]) for name in wanted}
        if len(set(lengths.values())) > 1:
            raise UnsupportedError(f"columns of unequal length: {lengths}", where=repr(self))
        return lengths[self.images]

    def _prompt(self, batch: Mapping[str, Any], i: int) -> Prompt:
        from .answering import Prompt, picture

        cell = batch[self.images][i]
        try:
            images = [picture(one) for one in _several(cell)]
        except UnsupportedError as error:
            raise self._bad(i, self.images, error.what, error.hint) from error
        if self.messages is None:
            asked = batch[self.question][i]
            if not isinstance(asked, str):
                raise self._bad(i, self.question, f"{type(asked).__name__} is not a text")
            places = [{"type": "image"} for _ in images]
            return Prompt([{"role": "user", "content": [*places, {"type": "text", "text": asked}]}], images)
        messages = self.messages({name: column[i] for name, column in batch.items()})
        content = [part for message in messages for part in message["content"]]
        places = sum(isinstance(part, Mapping) and part.get("type") == "image" for part in content)
        if places != len(images):
            raise self._bad(
                i, self.images, f"{len(images)} pictures, but the messages have {places} places for pictures"
            )
        return Prompt(messages, images)

    def _bad(self, i: int, column: str, what: str, hint: str = "") -> UnsupportedError:
        return UnsupportedError(f"row {i} of column {column!r}: {what}", where=repr(self), hint=hint)


def _name(plan: Plan | None) -> str:
    return "uncompressed" if plan is None else str(plan)


def _several(cell: Any) -> Sequence[Any]:
    """The pictures of a cell: none, one, or a list of them."""
    if cell is None:
        return []
    if isinstance(cell, (list, tuple)):
        return cell
    # An array of objects, or with one axis more than a picture in colour, is a list too.
    if hasattr(cell, "dtype") and hasattr(cell, "ndim") and (cell.dtype == object or cell.ndim == 4):
        return list(cell)
    return [cell]
