"""From the configuration's key to a plan, and what of it vLLM can run. Needs no vLLM: the rules can be asked anywhere.

vLLM counts a picture's placeholders from its size, before anything is encoded, keeps what was encoded for other prompts
with the same picture, and has a fixed set of cache blocks and positions per request. So a plan may hold methods that
keep an exact number of tokens, after the vision tower, without a look at the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from foveate.errors import PlanError, UnsupportedError
from foveate.plan import Plan, Step
from foveate.stages.reading import READ

KEY = "foveate"
POSITIONS = "foveate_positions"
NEEDS = frozenset([*READ, "early"])  # what is read in vLLM's towers
EMBED = "compress with transformers and send embeddings: foveate.serving.embed.embed_images"

# How kept tokens may be numbered, the default first. Positions of one axis are consecutive in vLLM.
NUMBERED = {"llava": ("contiguous",), "llava_onevision": ("contiguous",), "qwen2_5_vl": ("original", "contiguous")}

_STAGES = {
    "input": "vLLM makes the pictures ready before the model sees them",
    "encoder": "the rows of a tower in vLLM cannot be thinned out between its blocks",
    "layers": "vLLM's cache blocks and positions are the same for all layers of a request",
    "cache": "vLLM's cache blocks hold the same tokens for all heads of a layer",
}


def given(config: Any) -> Any:
    """What the configuration's key holds, or None."""
    return getattr(config, KEY, None) or None


def plan_of(config: Any) -> Plan | None:
    """The plan of a model's configuration, or None without one. It is read, but not checked against the model.

    Args:
        config: of the checkpoint, with ``hf_overrides`` applied. Its key ``foveate`` holds the text of a plan, or what
            ``Plan.to_dict`` gives, as a mapping or as JSON; ``foveate_positions`` how kept tokens are numbered.

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`.
    """
    plan = given(config)
    if plan is None:
        return None
    text = plan if isinstance(plan, str) else json.dumps(plan, sort_keys=True)
    return _read(text, getattr(config, POSITIONS, None), getattr(config, "model_type", ""))


@lru_cache
def _read(text: str, positions: str | None, model_type: str) -> Plan:
    plan: Any = text
    if text.lstrip()[:1] in '{["':
        try:
            plan = json.loads(text)
        except ValueError as error:
            raise PlanError(f"{KEY}={text!r} is not JSON: {error}", hint='"divprune:keep=0.25"') from error
    said = positions or (plan.get("positions") if isinstance(plan, Mapping) else None)
    return Plan.of(plan, positions=said or NUMBERED.get(model_type, ("original",))[0])


def left(plan: Plan, tokens: int) -> int:
    """Tokens that a plan leaves of a picture's, from their number alone.

    Raises:
        KeepError: a strict budget that the picture cannot meet.
    """
    for step in plan.steps:
        assert step.keep is not None
        (tokens,) = step.keep.counts([tokens])
    return tokens


def digest(plan: Plan) -> str:
    """A short name of a plan, for keys of caches that may outlive an engine or be shared by several."""
    return hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def check(plan: Plan, model_type: str) -> None:
    """Raise UnsupportedError unless vLLM can run a plan on a kind of model; the error says what to do instead."""
    if model_type not in NUMBERED:
        raise UnsupportedError(
            f"{model_type!r} is not among the models that foveate-vllm serves",
            where=f"plan {plan}",
            hint=f"one of {', '.join(NUMBERED)}, or foveate.compress with transformers",
        )
    # Where text lies after a picture depends on its grid there, so embeddings of another length would be misplaced.
    other = EMBED if model_type == "llava" else "foveate.compress with transformers, or a method such as divprune"
    for step in plan.steps:
        for fault, hint in _faults(step):
            where = f"method {step.method.name}, stage {step.stage}, vLLM"
            raise UnsupportedError(fault, where=where, hint=hint or other)
    if plan.positions not in NUMBERED[model_type]:
        raise UnsupportedError(
            f"positions={plan.positions!r}: vLLM numbers the tokens of {model_type} {' or '.join(NUMBERED[model_type])}",
            where=f"plan {plan}",
            hint=f"leave out {POSITIONS}, and compare with foveate.compress(..., positions={NUMBERED[model_type][0]!r})",
        )


def _faults(step: Step) -> Iterator[tuple[str, str]]:
    """Why vLLM cannot run a step, and what to do instead ("": what the model allows)."""
    method, card = step.method, step.method.card
    if step.stage != "connector":
        yield f"stage {step.stage!r}: {_STAGES[step.stage]}", ""
    if card.guidance != "none" or "question" in card.needs:
        yield "it looks at the question, and vLLM keeps what was encoded for other prompts with the same picture", ""
    if card.count != "fixed" or step.keep is None:
        yield "the content decides how many tokens stay, and vLLM counts placeholders before it encodes", ""
    elif step.keep.unit == "total":
        yield (
            f"keep={step.keep} is shared over the pictures of a prompt, and vLLM encodes each for itself",
            f"a budget per picture, such as {int(step.keep.amount)}/image or a share",
        )
    if missing := sorted({*card.needs, *(method.marked_by or ())} - NEEDS - {"question"}):
        yield f"it needs {', '.join(missing)}, which is not read in vLLM", ""
