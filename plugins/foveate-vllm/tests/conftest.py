"""Engines on the CPU, in this process, and the same models in transformers. Without vLLM only the rules are tested."""

import contextlib
import gc
import os
from importlib.util import find_spec

import pytest
import torch

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
os.environ |= SETTINGS  # before vLLM is imported

HAS_VLLM = find_spec("vllm") is not None
collect_ignore = (
    [] if HAS_VLLM else ["test_llava.py", "test_onevision.py", "test_qwen.py", "test_start.py", "test_embeddings.py"]
)


class Engine:
    """An engine that ends with its block, whoever still holds this: a late end would take the next one's groups along."""

    def __init__(self, llm):
        self.llm = llm

    def generate(self, *args, **kwargs):
        return self.llm.generate(*args, **kwargs)

    @property
    def config(self):
        return self.llm.llm_engine.vllm_config.model_config


@contextlib.contextmanager
def running(folder, plan=None, overrides=None, **more):
    """An engine, and a list to which each picture's kept tokens are added as it is encoded."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from foveate_vllm.compressor import Compressor

    kept, stock = [], Compressor.__call__

    def watched(self, encode, arguments):
        pictures = stock(self, encode, arguments)
        for picture in pictures:
            reduction = picture.reduction
            kept.append(list(range(len(picture.x))) if reduction is None else reduction.anchor.tolist())
        return pictures

    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1400,
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 2},
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
    }
    overrides = {**({} if plan is None else {"foveate": plan}), **(overrides or {})}
    Compressor.__call__ = watched
    engine = Engine(None)
    try:
        engine.llm = LLM(str(folder), hf_overrides=overrides, **settings | more)
        kept.clear()  # profiling encodes pictures, too
        yield engine, kept
    finally:
        Compressor.__call__ = stock
        engine.llm = None
        gc.collect()
        cleanup_dist_env_and_memory()


def greedy(llm, prompts, count=6, together=False):
    """(length of the prompt, new tokens, their summed log-probability, tokens found in the prefix cache) of each."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, logprobs=1)
    outs = (
        llm.generate(prompts, how, use_tqdm=False)
        if together
        else [llm.generate([prompt], how, use_tqdm=False)[0] for prompt in prompts]
    )
    return [
        (
            len(out.prompt_token_ids),
            list(out.outputs[0].token_ids),
            out.outputs[0].cumulative_logprob,
            out.num_cached_tokens,
        )
        for out in outs
    ]


def in_transformers(model, inputs, plan, positions, count=6, newlines=False, **more):
    """(length of the prompt, new tokens, their summed log-probability, kept tokens of each picture) of one prompt.

    newlines: whether every newline stays, as in vLLM.
    """
    import foveate
    from foveate_vllm.newlines import keep

    context = contextlib.nullcontext() if plan is None else foveate.compress(model, plan, positions=positions, **more)
    if newlines and plan is not None:
        context = keep(context)
    with context as run, torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
    new = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    total = sum(logits[0].float().log_softmax(-1)[token].item() for logits, token in zip(out.logits, new, strict=True))
    if plan is None:
        return inputs["input_ids"].shape[1], new, total, None
    return run.report.sequence_out, new, total, [image.kept.tolist() for image in run.report.images]


@pytest.fixture(scope="session")
def testbed_folder(tmp_path_factory):
    """The shipped model, its tensors renamed for vLLM."""
    from foveate import testbed
    from foveate_vllm.checkpoint import convert

    return convert(testbed.model_path(), tmp_path_factory.mktemp("vllm") / "testbed")


@pytest.fixture
def stock_llava(monkeypatch):
    """vLLM's own class in its registry, as without the plug-in; what vLLM remembers of classes is set aside."""
    from vllm import ModelRegistry
    from vllm.model_executor.model_loader import utils
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # once per process: later it would undo what is done here
    name = "LlavaForConditionalGeneration"
    monkeypatch.setattr(utils, "_MODEL_ARCH_BY_HASH", {})
    monkeypatch.setitem(ModelRegistry.models, name, ModelRegistry.models[name])
    ModelRegistry.register_model(name, f"vllm.model_executor.models.llava:{name}")
    return name
