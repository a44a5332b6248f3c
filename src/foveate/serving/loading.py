"""Loading a model the way ``transformers serve`` does, with its devices, dtypes and quantization."""

from __future__ import annotations

from typing import Any

from ..errors import FoveateError, UnsupportedError, require


def load(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    quantization: str | None = None,
) -> tuple[Any, Any]:
    """A model and its processor, ready to answer.

    Args:
        name: a folder, or the id of a model hub.
        device: "auto", "cpu", "cuda", "cuda:0", ...
        dtype: "auto" for that of the weights, "float32", "bfloat16" or "float16".
        attention: attention implementation of transformers, None for its default.
        quantization: "bnb-4bit", "bnb-8bit" or None.

    Raises:
        MissingExtraError: without the extra ``serve``.
        UnsupportedError: if it cannot be loaded, or has no chat template.
    """
    require("fastapi", "serve")
    from transformers import logging
    from transformers.cli.serving.model_manager import ModelManager

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its notes about what it loads are warnings
    try:
        manager = ModelManager(device, dtype, False, attention, quantization=quantization, force_model=name)
        model, processor = manager.load_model_and_processor(manager.process_model_name(name))
    except FoveateError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"{name} cannot be loaded: {type(error).__name__}: {line}",
            hint="a folder written by save_pretrained with its processor, or an id of a model hub that can be reached",
        ) from error
    finally:
        logging.set_verbosity(before)
    if not getattr(processor, "chat_template", None):
        raise UnsupportedError(
            f"the processor of {name} has no chat template, so a conversation cannot be written as a prompt",
            hint="chat_template.jinja in the model's folder",
        )
    return model.eval(), processor
