"""Refusals at start: before a process is started, weights are read or memory is taken.

vLLM asks a class per architecture whether a configuration is right, in the process that was started first. The classes
put there ask what was there before as well, and do nothing while the configuration has no key ``foveate``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from foveate.errors import UnsupportedError
from foveate.stages.encoder import Wanted

from .plans import check, given, left, plan_of

SWITCH = 2.0**-6  # a rate of video pruning that only switches vLLM's recounting of positions on


def install(served: Collection[str], version: str) -> None:
    """Guard every architecture that vLLM knows. served: those that can be compressed; version: of vLLM."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for architecture in {*ModelRegistry.get_supported_archs(), *MODELS_CONFIG_MAP}:
        base = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not hasattr(base, "foveate"):
            MODELS_CONFIG_MAP[architecture] = _guarded(base, architecture, architecture in served, version)


def _guarded(base: Any, architecture: str, served: bool, version: str) -> Any:
    class Guarded(base):
        foveate = True

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            base.verify_and_update_model_config(model_config)
            if given(model_config.hf_config) is not None:
                if not served:
                    raise _stranger(architecture, version)
                check_model(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base.verify_and_update_config(vllm_config)
            if given(vllm_config.model_config.hf_config) is not None:
                check_engine(vllm_config)

    return Guarded


def _stranger(architecture: str, version: str) -> UnsupportedError:
    from . import MODELS, TESTED, UNTESTED

    if architecture in MODELS:
        return UnsupportedError(
            f"foveate-vllm was tested with vLLM {TESTED}, this is {version}",
            where=architecture,
            hint=f"vLLM {TESTED}, or {UNTESTED}=1 to try it all the same",
        )
    return UnsupportedError(
        f"foveate-vllm cannot compress {architecture}",
        where=f"vLLM {version}",
        hint=f"{', '.join(MODELS)}; leave the key out, or use foveate.compress with transformers",
    )


def check_model(model_config: Any) -> None:
    """Raise UnsupportedError unless the plan fits the model; switch on what the model needs of vLLM."""
    config, multimodal = model_config.hf_config, model_config.multimodal_config
    plan = plan_of(config)
    assert plan is not None
    check(plan, config.model_type)
    fault = hint = ""
    if config.model_type == "llava" and config.vision_config.model_type not in (
        "clip_vision_model",
        "siglip_vision_model",
    ):
        fault = f"a LLaVA with a tower of type {config.vision_config.model_type!r} has structure among its tokens"
        hint = "foveate.compress with transformers"
    elif config.model_type == "llava" and config.vision_feature_select_strategy == "full":
        if config.vision_config.model_type == "clip_vision_model":
            fault, hint = "a CLS token is passed on among the visual tokens", "foveate.compress with transformers"
    elif config.model_type == "llava_onevision":
        fault, hint = _onevision(config)
    elif config.model_type == "qwen2_5_vl" and multimodal is not None:
        if multimodal.video_pruning_rate not in (None, 0.0, SWITCH):
            fault = "video_pruning_rate: two ways of leaving out visual tokens at once"
            hint = "leave out video_pruning_rate, or the key foveate"
        multimodal.video_pruning_rate = SWITCH
    if fault:
        raise UnsupportedError(fault, where=f"plan {plan}, {config.model_type}, vLLM", hint=hint)
    if config.model_type == "llava":
        side = config.vision_config.image_size // config.vision_config.patch_size
        left(plan, side**2)  # a strict budget may ask for more


def _onevision(config: Any) -> tuple[str, str]:
    """Why a LLaVA-OneVision cannot be compressed, and what to do instead."""
    tower, hint = config.vision_config.model_type, "foveate.compress with transformers"
    if tower != "siglip_vision_model":
        return f"a LLaVA-OneVision with a tower of type {tower!r}, whose rows were never compared", hint
    if config.vision_feature_select_strategy != "full" or not isinstance(config.vision_feature_layer, int):
        return "a LLaVA-OneVision that leaves out a token of its tower, or joins several blocks", hint
    if config.vision_aspect_ratio != "anyres_max_9":
        return (
            f"vision_aspect_ratio={config.vision_aspect_ratio!r}: vLLM cuts pictures by 'anyres_max_9' whatever it says",
            hint,
        )
    return "", ""


def check_engine(vllm_config: Any) -> None:
    """Raise UnsupportedError if the engine is set up in a way that would compress wrongly."""
    config, parallel = vllm_config.model_config.hf_config, vllm_config.parallel_config
    plan = plan_of(config)
    assert plan is not None
    wanted = Wanted.by(plan)
    reads = ", ".join(sorted({*wanted.needs, *(["early"] if wanted.early else [])}))
    fault = hint = ""
    if reads and parallel.tensor_parallel_size > 1:
        fault = f"it reads {reads} in the tower, whose heads lie on {parallel.tensor_parallel_size} devices"
        hint = "a method that looks at features only, such as divprune, or tensor_parallel_size=1"
    elif reads and getattr(vllm_config.compilation_config, "compile_mm_encoder", False):
        fault, hint = f"it reads {reads} in the tower, which compile_mm_encoder hides", "leave out compile_mm_encoder"
    elif getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        fault = "LoRA in tower and connector counts their tokens from the placeholders, which are fewer now"
        hint = "leave out enable_tower_connector_lora"
    elif config.model_type == "qwen2_5_vl" and vllm_config.speculative_config is not None:
        fault, hint = "positions of drafts are not recounted", "leave out the speculative configuration"
    if fault:
        raise UnsupportedError(fault, where=f"plan {plan}, {config.model_type}, vLLM", hint=hint)
