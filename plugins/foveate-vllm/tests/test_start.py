"""Refusals when an engine is set up: folders without weights show that nothing was read yet. And keys of caches."""

import shutil

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY

from foveate import testbed


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The shipped model without its weights."""
    new = tmp_path_factory.mktemp("bare") / "llava"
    shutil.copytree(testbed.model_path(), new, ignore=shutil.ignore_patterns("*.safetensors"))
    return new


def configured(folder, plan=None, more=None, **engine):
    overrides = {**({} if plan is None else {"foveate": plan}), **(more or {})}
    return EngineArgs(str(folder), hf_overrides=overrides, dtype="float32", **engine).create_engine_config()


@pytest.mark.parametrize(
    ("plan", "more", "says"),
    [
        ("fastv:layer=2,keep=0.5", {}, "stage 'layers'.*send embeddings"),
        ("snapkv:keep=64", {}, "stage 'cache'.*send embeddings"),
        ("tome_tower:keep=0.25", {}, "stage 'encoder'.*send embeddings"),
        ("resize:keep=0.25", {}, "stage 'input'.*send embeddings"),
        ("cdpruner:keep=0.25", {}, "looks at the question.*send embeddings"),
        ("pool:keep=0.25", {}, "decides how many.*send embeddings"),
        ("embedlens:keep=0.25", {}, "needs vocabulary.*send embeddings"),
        ("divprune:keep=300/total", {}, "encodes each for itself.*300/image"),
        ("divprune:keep=0.25", {"foveate_positions": "original"}, "positions='original'"),
        ("nosuch:keep=0.25", {}, "no method"),
        ("divprune", {}, "no budget"),
        ("divprune:keep=2.0", {}, "not a budget"),
        ("divprune:keep==900/image", {}, "asks for 900 tokens, the image has 576"),
        ("divprune:keep=0.25", {"vision_feature_select_strategy": "full"}, "CLS token"),
    ],
)
def test_refused_before_weights_are_read(bare, plan, more, says):
    with pytest.raises(ValueError, match=rf"(?s){says}"):
        configured(bare, plan, more)


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"model_impl": "transformers"}, "cannot compress TransformersMultiModal"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder hides"),
        ({"tensor_parallel_size": 2}, "heads lie on 2 devices"),
    ],
)
def test_engines_that_would_compress_wrongly_are_refused(bare, engine, says):
    with pytest.raises(ValueError, match=says):
        configured(bare, "visionzip:keep=0.25", **engine)


def test_what_fits_is_not_refused(bare):
    config = configured(bare, "divprune:keep=0.25")
    assert config.model_config.hf_config.foveate == "divprune:keep=0.25"


def test_other_architectures_refuse_the_key(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=99
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    assert configured(tmp_path, skip_tokenizer_init=True)
    with pytest.raises(ValueError, match="cannot compress LlamaForCausalLM"):
        configured(tmp_path, "divprune:keep=0.25", skip_tokenizer_init=True)


def test_an_untested_release_refuses_the_key_and_replaces_nothing(bare, monkeypatch, stock_llava):
    import vllm
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import foveate_vllm

    for architecture in list(MODELS_CONFIG_MAP):
        base = MODELS_CONFIG_MAP[architecture]
        monkeypatch.setitem(MODELS_CONFIG_MAP, architecture, base.__base__ if hasattr(base, "foveate") else base)
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    foveate_vllm.register()
    assert ModelRegistry.models[stock_llava].module_name == "vllm.model_executor.models.llava"
    configured(bare)
    with pytest.raises(ValueError, match=r"tested with vLLM 0.32, this is 0.99.0"):
        configured(bare, "divprune:keep=0.25")


def hashes(config, ids=None):
    from PIL import Image
    from vllm.multimodal.processing.inputs import ProcessorInputs

    processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    items = processor.info.parse_mm_data({"image": [Image.new("RGB", (192, 192), "red")]})
    return processor._get_mm_hashes(ProcessorInputs([1], items, {"image": ids} if ids else None))["image"]


def test_a_picture_has_another_key_under_another_plan(bare):
    configs = [configured(bare, plan) for plan in (None, "divprune:keep=0.25", "divprune:keep=0.5", "random:keep=0.25")]
    found = [key for config in configs for key in hashes(config)]
    assert len(set(found)) == 4
    assert hashes(configs[1]) == hashes(configured(bare, "divprune:keep=25%"))
    named = [key for config in configs for key in hashes(config, ["mine"])]  # an id that the caller gives
    assert len(set(named)) == 4 and named[0] == "mine"
