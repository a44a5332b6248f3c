"""Foveate's methods inside vLLM: ``vllm serve MODEL --hf-overrides '{"foveate": "divprune:keep=0.25"}'``.

vLLM calls :func:`register` in every process of its own (entry point group ``vllm.general_plugins``). A model whose
configuration has no key ``foveate`` runs as it does without this package.
"""

from __future__ import annotations

import logging
import os

__version__ = "0.1.0"

TESTED = "0.32"  # release series of vLLM
UNTESTED = "FOVEATE_VLLM_UNTESTED"  # environment variable: 1 to try another one
MODELS = {  # architectures in a checkpoint's config.json -> the classes that stand in for vLLM's own
    "LlavaForConditionalGeneration": "foveate_vllm.llava:LlavaForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": "foveate_vllm.llava_onevision:LlavaOnevisionForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "foveate_vllm.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration",
}


def register() -> None:
    """Put the classes in vLLM's registry, and let every other architecture refuse the key. Cheap, and repeatable.

    With a release that was not tested nothing is replaced, and the key is refused everywhere.
    """
    import vllm
    from vllm import ModelRegistry

    from . import guard

    tested = vllm.__version__ == TESTED or vllm.__version__.startswith(TESTED + ".") or os.environ.get(UNTESTED) == "1"
    if tested:
        for architecture, place in MODELS.items():
            ModelRegistry.register_model(architecture, place)
    else:
        logging.getLogger(__name__).warning(
            "foveate-vllm was tested with vLLM %s, this is %s: it does nothing. %s=1 tries it all the same.",
            TESTED,
            vllm.__version__,
            UNTESTED,
        )
    guard.install(MODELS if tested else (), vllm.__version__)
