"""Pictures compressed in transformers, as embeddings for a server that takes embeddings instead of pictures.

vLLM does, with ``enable_mm_embeds=True``, without any plug-in. So a server can get what no method inside it can do: choices
that follow the question, numbers of tokens that follow the picture, another budget for each request::

    (pictures,) = embed_images(model, inputs, "cdpruner:keep=64", processor=processor)
    llm.generate({"prompt": prompt, "multi_modal_data": {"image": pictures}})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import Run, compress
from ..errors import UnsupportedError
from ..method import STAGES
from ..plan import Plan

# Models whose servers take embeddings of any length for a picture, and number the prompt 0, 1, 2, ...
SERVED = ("llava",)


class _Reached(Exception):  # noqa: N818 (not an error)
    """The language model would begin here."""


def embed_images(
    model: nn.Module,
    inputs: Mapping[str, Any],
    plan: object,
    *,
    keep: object = None,
    processor: Any = None,
    split: str | None = None,
    relevance: Any = None,
) -> list[list[Tensor]]:
    """The visual tokens that a plan leaves of each picture; the language model does not run.

    A server that gets them answers as ``model.generate`` does under ``foveate.compress(model, plan,
    positions="contiguous")``: it numbers the tokens of a prompt one by one, so a plan's own positions do not matter.

    Args:
        model: a LLaVA of transformers, without a run attached to it.
        inputs: what its processor made of prompts with pictures: the ids of the very prompts that will be asked, as
            methods may look at the question. One prompt or a padded batch.
        plan, keep, processor, split, relevance: see :func:`foveate.compress`. Steps before the language model only.

    Returns:
        Of each prompt, of each of its pictures, (tokens, width of the language model) on the CPU, in the model's dtype.

    Raises:
        UnsupportedError: for models whose servers work out positions from a picture's size, and for plans with a step
            inside the language model.
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
    """
    found = Plan.of(plan, keep, "contiguous", split)
    _check(model, found)
    with compress(model, found, processor=processor, relevance=relevance) as run:
        return _embedded(run, inputs)


def _check(model: Any, plan: Plan) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind not in SERVED:
        where, hint = f"model_type {kind!r}", f"one of {', '.join(SERVED)}"
        if "qwen" in kind:
            fault = (
                "its server works out three-dimensional positions from the size of a picture, which must match the number "
                "of its embeddings: fewer of them would stand at wrong places"
            )
            hint = "the plug-in foveate-vllm, which keeps places, or foveate.compress with transformers"
        else:
            fault = "whether a server takes any number of embeddings for a picture of this model was not tried"
        raise UnsupportedError(fault, where=where, hint=hint)
    for step in plan.steps:
        if STAGES.index(step.stage) >= STAGES.index("layers"):
            raise UnsupportedError(
                f"stage {step.stage!r} is inside the language model, which runs on the server",
                where=f"method {step.method.name}",
                hint="steps before the language model, such as divprune or visionzip",
            )


@torch.no_grad()
def _embedded(run: Run, inputs: Mapping[str, Any]) -> list[list[Tensor]]:
    caught: list[Any] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((kwargs.get("mm_encoder_outputs") or {}).get("image"))
        raise _Reached

    # Added after the run's own hook, so it sees the prompt as the language model would.
    hook = run.model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        run.model(**inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    if caught[0] is None:
        raise UnsupportedError(
            "the inputs hold no pictures", where="embed_images", hint="what the processor makes of text and images"
        )
    report = run.report
    assert report is not None
    rows = torch.cat(run.family.rows(caught[0])).cpu()
    pieces = iter(rows.split([image.tokens_out + image.structure_out for image in report.images]))
    return [[next(pieces) for _ in report.of(sample)] for sample in range(len(inputs["input_ids"]))]
