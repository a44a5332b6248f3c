"""Which preparation of prompts a model gets: ours under a plan, vLLM's own without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY

from .plans import plan_of


def processed(stock: Any, info: Any, processor: Any) -> Callable[[type], type]:
    """A decorator that registers what makes prompts ready for a model class.

    Args:
        stock: vLLM's class, whose own are used where the configuration holds no plan.
        info: ours, which counts placeholders.
        processor: ours, for an ``info`` of ours.
    """
    known = stock._processor_factory

    def infos(ctx: Any) -> Any:
        return known.info(ctx) if plan_of(ctx.get_hf_config()) is None else info(ctx)

    def processors(found: Any, dummy_inputs: Any, **more: Any) -> Any:
        return (processor if isinstance(found, info) else known.processor)(found, dummy_inputs, **more)

    return MULTIMODAL_REGISTRY.register_processor(processors, info=infos, dummy_inputs=known.dummy_inputs)
