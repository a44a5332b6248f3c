"""The model ``foveate`` of lmms-eval: any transformers model, with its visual tokens compressed.

lmms-eval finds it by the entry point ``lmms_eval.models``, which calls :func:`manifest`. Its class ``Foveate`` is made when
lmms-eval asks for it, since only lmms-eval has the base class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError, require

if TYPE_CHECKING:
    from ..plan import Plan
    from .answering import Prompt

WHERE = "lmms-eval model foveate"
LONGEST = 1024  # new tokens if a task does not say, as in the models of lmms-eval
TAKEN = (
    "do_sample", "temperature", "top_p", "top_k", "num_beams", "length_penalty", "repetition_penalty",
    "no_repeat_ngram_size", "min_new_tokens",
)  # fmt: skip


def manifest() -> Any:
    """What lmms-eval has to know of the model."""
    return _of("lmms_eval.models.registry_v2").ModelManifest(model_id="foveate", chat_class_path=f"{__name__}.Foveate")


def read_plan(plan: object = None, keep: object = None, positions: str | None = None) -> Plan | None:
    """The plan in lmms-eval's ``--model_args``, where a comma ends an argument.

    Args:
        plan: a name or text, ``;`` standing for the comma; a JSON file written by ``Plan.save``; None for no compression.
        keep, positions: as in :func:`foveate.compress`.

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
        UnsupportedError: a budget or positions without a plan, or a file that is not there.
    """
    from ..plan import Plan

    text = "" if plan is None else str(plan).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]  # lmms-eval minds quotes when it splits, and leaves them in
    if text in ("", "none"):
        if keep is not None or positions is not None:
            raise UnsupportedError(
                f"keep={keep}, positions={positions} without a plan", where=WHERE, hint="plan=divprune"
            )
        return None
    if text.endswith(".json"):
        if not os.path.exists(text):
            raise UnsupportedError(f"no plan file {text}", where=WHERE, hint="Plan.save writes such files")
        return Plan.of(Plan.load(text), keep, positions)
    return Plan.of(text.replace(";", ","), keep, positions)


class Adapter:
    """What lmms-eval calls. Arguments are those of ``--model_args``, besides ``--batch_size`` and ``--device``.

    Args:
        pretrained: "testbed", a folder, or an id of a model hub.
        plan, keep, positions: see :func:`read_plan`; without a plan the model is the uncompressed one.
        batch_size: prompts that are answered together, padded on the left.
        device: of torch; default: a GPU if there is one. Of several processes each takes the GPU of its number.
        dtype: "auto", "float32", "bfloat16" or "float16".
        max_new_tokens: longest answer, where a task does not say.
        unknown: refused.
    """

    is_simple = False
    task_dict: dict[str, Any]
    rank: int

    def __init__(
        self,
        pretrained: str = "testbed",
        plan: object = None,
        keep: object = None,
        positions: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = LONGEST,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UnsupportedError(
                f"unknown model_args: {', '.join(unknown)}",
                where=WHERE,
                hint="pretrained, plan, keep, positions, dtype, max_new_tokens; commas inside a plan are written ;",
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UnsupportedError(f"batch_size={batch_size}", where=WHERE, hint="a number; it is not found by trying")
        import torch

        from .answering import Answerer, Tally

        self.plan, self.batch_size = read_plan(plan, keep, positions), int(batch_size)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = torch.device(device)
        self.max_new_tokens = int(max_new_tokens)
        self.tally = Tally()
        self._ignored: set[str] = set()
        self._answerer: Answerer | None = Answerer(pretrained, device, dtype)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answers in the order of the requests; batches keep that order and never mix tasks or decoding options."""
        made, metrics = _of("lmms_eval.api.instance"), _of("lmms_eval.models.model_utils.gen_metrics")
        assert self._answerer is not None
        found: list[Any] = [None] * len(requests)
        seconds, written = self._answerer.seconds, self.tally.written
        with _of("tqdm").tqdm(total=len(requests), desc="foveate", disable=self.rank != 0) as bar:
            for places in _batches(requests, self.batch_size):
                options = dict(requests[places[0]].args[2] or {})
                prompts = [self._prompt(requests[i]) for i in places]
                said = self._answerer.answer(prompts, self.plan, **self._decoding(options))
                self.tally.add(one for i, one in zip(places, said, strict=True) if not _is_padding(requests[i]))
                for i, one in zip(places, said, strict=True):
                    found[i] = made.GenerationResult(one.text, made.TokenCounts(one.read, one.written))
                bar.update(len(places))
        seconds, written = self._answerer.seconds - seconds, self.tally.written - written
        per_image = {f"visual_tokens_per_image_{name}": n for name, n in self.tally.per_image().items()}
        metrics.log_metrics(seconds, written, written / seconds if seconds else 0.0, per_image)
        _of("loguru").logger.info(f"foveate, {self.plan or 'uncompressed'}: {self.tally}")
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refused: nothing here scores given answers."""
        raise UnsupportedError(
            "loglikelihood requests are not supported, only generated answers",
            where=WHERE,
            hint="a task or variant with output_type: generate_until",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[Any]:
        """Refused. Conversations that are known beforehand are messages of one request, and work."""
        raise UnsupportedError(
            "tasks that ask again after looking at an answer (generate_until_multi_round) are not supported",
            where=WHERE,
            hint="a task with output_type: generate_until; its messages may hold earlier turns",
        )

    def clean(self) -> None:
        """Let go of the model: lmms-eval may load a judge next."""
        self._answerer = None
        super().clean()  # type: ignore[misc]

    def _prompt(self, request: Any) -> Prompt:
        from .answering import Prompt, picture

        _, to_messages, _, doc, task, split = request.args
        chat = _of("lmms_eval.protocol").ChatMessages(messages=to_messages(self.task_dict[task][split][doc]))
        images, videos, audios = chat.extract_media()
        if videos or audios:
            raise UnsupportedError(
                f"document {doc} of task {task} holds {'video' if videos else 'sound'}",
                where=WHERE,
                hint="tasks of pictures and text",
            )
        messages = [
            {"role": m["role"], "content": [{"type": "image"} if c["type"] == "image" else c for c in m["content"]]}
            for m in chat.to_hf_messages()
        ]
        return Prompt(messages, [picture(image) for image in images])

    def _decoding(self, options: dict[str, Any]) -> dict[str, Any]:
        """A task's generation_kwargs as arguments of ``answer``; what they do not know is named once, and left out."""
        until = options.pop("until", None) or ()
        until = [until] if isinstance(until, str) else [stop for stop in until if stop]
        longest = options.pop("max_new_tokens", None) or self.max_new_tokens
        given = {name: options.pop(name) for name in TAKEN if options.get(name) is not None}
        unknown = {name for name, value in options.items() if value is not None} - self._ignored
        if unknown:
            self._ignored |= unknown
            _of("loguru").logger.warning(f"foveate ignores these generation_kwargs: {', '.join(sorted(unknown))}")
        return given | {"max_new_tokens": int(longest), "until": until}


def _of(module: str) -> Any:
    """A module of lmms-eval, or one that comes with it."""
    return require(module, "eval")


def _batches(requests: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of requests that are answered together: of one task and with the same options, in their order."""
    groups: dict[Any, list[int]] = {}
    for i, request in enumerate(requests):
        _, _, options, _, task, split = request.args
        groups.setdefault((task, split, repr(sorted((options or {}).items()))), []).append(i)
    for places in groups.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _is_padding(request: Any) -> bool:
    """Whether lmms-eval added a request only so that all processes have the same number."""
    return bool((request.metadata or {}).get("__padding_only__"))


@cache
def _with_base() -> type:
    return type(
        "Foveate", (Adapter, _of("lmms_eval.api.model").lmms), {"__doc__": Adapter.__doc__, "__module__": __name__}
    )


def __getattr__(name: str) -> Any:
    if name == "Foveate":
        return _with_base()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
