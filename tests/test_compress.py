"""compress() in the company that models keep: wrappers, dispatch, pipelines, threads, caches; works or refuses clearly."""

import copy
import gc
import json
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from probes import DROPS, Drop, Guided
from reference import (
    BEFORE_5_23,
    IMAGE_A,
    IMAGE_B,
    MIXED,
    STEPS,
    batch_of,
    generated,
    generation_positions,
    logits_of,
    model_of,
    traces,
)
from transformers import DynamicCache, StaticCache

import foveate
import tiny
from foveate.errors import FoveateError, KeepError, PlanError, UnsupportedError
from foveate.report import Report
from foveate.stages import prompt

ONE = MIXED[:1]


def refused(error: type[FoveateError], *words: str):
    """The call raises this, and its message has these words and something to try."""

    class Check:
        def __enter__(self):
            self.raises = pytest.raises(error)
            self.info = self.raises.__enter__()
            return self.info

        def __exit__(self, *exc):
            caught = self.raises.__exit__(*exc)
            message = str(self.info.value)
            assert all(word in message for word in words), message
            assert "try: " in message, message
            return caught

    return Check()


def compressed(model, batch, keep=0.5, probe=None, **more):
    with foveate.compress(model, probe or Drop(), keep=keep, **more) as run:
        return logits_of(model, batch), run.report


# -- attaching -------------------------------------------------------------------------------------------------------


def test_handle_and_context():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    stock, (expected, _) = logits_of(model, batch), compressed(model, batch)
    run = foveate.compress(model, "stride", keep=0.5)
    assert run.active and "attached" in repr(run) and "stride:keep=50%" in repr(run) and run.report is None
    run.remove()
    run.remove()
    assert not run.active and "removed" in repr(run)
    assert torch.equal(logits_of(model, batch), stock)
    assert torch.equal(compressed(model, batch)[0], expected)


def test_one_run_at_a_time():
    model, before = model_of("llava"), traces(model_of("llava"))
    with foveate.compress(model, "random", keep=0.5):
        now = traces(model)
        with refused(UnsupportedError, "LlavaForConditionalGeneration", "already", "random:keep=50%", "remove"):
            foveate.compress(model, "stride", keep=0.5)
        assert traces(model) == now, "the first run is untouched"
    assert traces(model) == before


def test_two_models_at_once():
    llava, qwen = model_of("llava"), model_of("qwen2_5_vl")
    a, b = batch_of("llava", ONE), batch_of("qwen2_5_vl", ONE)
    expected = compressed(llava, a)[0], compressed(qwen, b)[0]
    with foveate.compress(llava, Drop(), keep=0.5) as outer, foveate.compress(qwen, Drop(), keep=0.5) as inner:
        assert torch.equal(logits_of(llava, a), expected[0]) and torch.equal(logits_of(qwen, b), expected[1])
        assert outer.report.tokens_in != inner.report.tokens_in
        inner.remove()
        assert torch.equal(logits_of(llava, a), expected[0])


@pytest.mark.parametrize("needs", ["attention", "before"])
def test_attaching_that_fails_leaves_nothing(needs, monkeypatch):
    model = model_of("llava")
    before = traces(model)

    def fail(*_, **__):
        raise RuntimeError("no hook")

    monkeypatch.setattr(model, "register_forward_hook", fail)
    with pytest.raises(RuntimeError, match="no hook"):
        foveate.compress(model, "visionzip" if needs == "before" else "fastervlm", keep=0.5)
    monkeypatch.undo()
    assert traces(model) == before


def test_model_and_run_can_be_forgotten():
    model = tiny.build("llava")
    run = foveate.compress(model, "fastervlm", keep=0.5)
    logits_of(model, batch_of("llava", ONE))
    gone = weakref.ref(model)
    del model, run
    gc.collect()
    assert gone() is None


def test_an_attached_model_is_not_copied():
    model = tiny.build("llava")
    with foveate.compress(model, "stride", keep=0.5), refused(UnsupportedError, "copied", "stride", "remove"):
        copy.deepcopy(model)
    copy.deepcopy(model)


class NoEncoder(torch.nn.Module):
    config = transformers.LlamaConfig()

    def get_input_embeddings(self):
        return None

    def forward(self, input_ids):
        return None


def test_what_cannot_be_compressed():
    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
        )
    )
    for model, word in [
        (text, "get_image_features"),
        (NoEncoder(), "get_image_features"),
        (torch.nn.Linear(2, 2), "not a transformers model"),
        (model_of("llava").forward, "not a model"),
    ]:
        with refused(UnsupportedError, word):
            foveate.compress(model, "random", keep=0.5)
    old = tiny.build("llava")
    old.forward = lambda input_ids, pixel_values: None  # before 5.18
    with refused(UnsupportedError, "mm_encoder_outputs", "5.18"):
        foveate.compress(old, "random", keep=0.5)


def test_plans_and_budgets_are_checked_first():
    with refused(PlanError, "nothing"):
        foveate.compress(model_of("llava"), "nothing", keep=0.5)
    with refused(KeepError, "9.0"):
        foveate.compress(model_of("llava"), "random", keep=9.0)
    with refused(UnsupportedError, "one size", "InternVL"):
        foveate.compress(model_of("internvl"), "resize", keep=0.5)
    with refused(UnsupportedError, "smaller picture", "fastervlm"):
        foveate.compress(model_of("qwen2_vl"), "resize:keep=0.5 > fastervlm:keep=0.5")


def test_two_steps_are_one_reduction():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    with foveate.compress(model, "tome:keep=24 > divprune:keep=10") as run:
        short = logits_of(model, batch)
    (image,) = run.report.images
    assert [stage[1:] for stage in image.stages] == [(24, 24), (10, 10)]
    assert short.shape[1] == batch["input_ids"].shape[1] - 26 == run.report.sequence_out
    assert image.reduction.n == 36 and image.reduction.m == 10
    assert torch.equal(image.kept, image.reduction.anchor)


# -- other people's wrappers -----------------------------------------------------------------------------------------


def test_peft():
    peft = pytest.importorskip("peft")
    batch = batch_of("llava")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    for task in (None, "CAUSAL_LM"):
        torch.manual_seed(0)
        config.task_type = task
        model = peft.get_peft_model(tiny.build("llava"), config)
        merged = copy.deepcopy(model).merge_and_unload()
        logits_of(model, batch), generated(model, batch, 1)  # first calls leave marks of the libraries' own
        before = traces(model)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with foveate.compress(merged, DROPS["tower"], keep=0.5):
            expected = logits_of(merged, batch), generated(merged, batch, 4), merged(**batch, labels=labels).loss
        for wrapped in (model, model.base_model):
            with foveate.compress(wrapped, DROPS["tower"], keep=0.5) as run:
                torch.testing.assert_close(logits_of(wrapped, batch), expected[0], atol=1e-4, rtol=0)
                assert run.report.tokens_out < run.report.tokens_in
                assert run.report.sequence_out == expected[0].shape[1], "shortened once"
                sequences, steps = generated(model, batch, 4)
                assert torch.equal(sequences, expected[1][0])
                torch.testing.assert_close(steps, expected[1][1], atol=1e-4, rtol=0)
                cached = wrapped(**batch, use_cache=True).past_key_values
                assert cached.get_seq_length() == batch["input_ids"].shape[1], "the cache was told once, too"
                with refused(UnsupportedError, "already"):
                    foveate.compress(model.get_base_model(), "random", keep=0.5)
                loss = wrapped(**batch, labels=labels).loss
                torch.testing.assert_close(loss, expected[2], atol=1e-4, rtol=0)
                loss.backward()
                trained = {k: p.grad for k, p in model.named_parameters() if p.requires_grad and p.grad is not None}
                assert all(g.isfinite().all() for g in trained.values())
                for part in ("language_model", "vision_tower"):
                    assert any(part in k and g.abs().max() > 0 for k, g in trained.items())
                model.zero_grad()
            assert traces(model) == before


def test_device_map():
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.build("qwen3_vl"), batch_of("qwen3_vl")
    expected = compressed(model, batch, probe=DROPS["tower"])[0]
    with foveate.compress(model, DROPS["tower"], keep=0.5):
        sequences, _ = generated(model, batch, 3)
    model = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(model, "_hf_hook")
    with foveate.compress(model, DROPS["tower"], keep=0.5):
        assert torch.equal(logits_of(model, batch), expected)
        assert torch.equal(generated(model, batch, 3)[0], sequences)


def tiny_processor(model):
    """A LLaVA processor built here, from a vocabulary of numbers and the model's picture size."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {tiny.PAD: "<pad>", tiny.BOS: "<s>", tiny.EOS: "</s>", tiny.IMAGE: "<image>"}
    vocabulary = {names.get(i, f"w{i}"): i for i in range(tiny.VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w32"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    side = {"height": 24, "width": 24}
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=side, do_convert_rgb=True)
    return transformers.LlavaProcessor(
        pictures, fast, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def test_pipeline():
    model = model_of("llava")
    processor = tiny_processor(model)
    pipe = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8))
    words = "<s> w40 <image> w50 w60"
    asked = {"max_new_tokens": 4, "do_sample": False}
    with refused(UnsupportedError, "pipeline.model"):
        foveate.compress(pipe, "random", keep=0.5)
    with foveate.compress(pipe.model, Guided(), keep=9, processor=processor) as run:
        (answer,) = pipe(images=picture, text=words, generate_kwargs=asked, return_full_text=False)
    assert run.report.tokens_in == 36 and run.report.tokens_out == 9
    inputs = processor(images=picture, text=words, return_tensors="pt")
    with foveate.compress(model, Guided(), keep=9, processor=processor):
        ids = model.generate(**inputs, **asked)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"].split() == processor.decode(ids).split()


def test_two_threads():
    """One attached model, different prompts at the same time: each as if it were alone, each with its own report."""
    for name in ("llava", "qwen2_5_vl"):
        model = model_of(name)
        jobs = [batch_of(name, [[3 + i, IMAGE_A if i % 2 else IMAGE_B, 4]], seed=i) for i in range(4)]
        with foveate.compress(model, DROPS["tower"], keep=0.5) as run:
            alone = [(generated(model, job, STEPS), run.report) for job in jobs]
            found, ready = [None] * len(jobs), threading.Barrier(len(jobs))

            def work(i, model=model, jobs=jobs, run=run, found=found, ready=ready):
                ready.wait()
                found[i] = [(generated(model, jobs[i], STEPS), run.report) for _ in range(3)]

            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for ((sequences, steps), report), several in zip(alone, found, strict=True):
            for (same, same_steps), own in several:
                assert torch.equal(same, sequences)
                torch.testing.assert_close(same_steps, steps, atol=1e-5, rtol=0)
                assert torch.equal(own.images[0].kept, report.images[0].kept) and own.tokens_in == report.tokens_in


# -- calls -----------------------------------------------------------------------------------------------------------


def test_embeddings_instead_of_ids():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    text = batch_of("llava", [[6]])
    words = {"inputs_embeds": model.get_input_embeddings()(text["input_ids"]).detach()}
    stock = logits_of(model, words)
    with foveate.compress(model, "random", keep=0.5) as run:
        with refused(UnsupportedError, "inputs_embeds", "input_ids", "llava"):
            model(inputs_embeds=embeds, pixel_values=batch["pixel_values"])
        assert torch.equal(logits_of(model, words), stock)
        model.generate(**words, max_new_tokens=2, do_sample=False)
        assert run.report is None


def test_positional_arguments():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    expected = compressed(model, batch)[0]
    with foveate.compress(model, Drop(), keep=0.5), torch.no_grad():
        assert torch.equal(model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits, expected)
        text = batch_of("llava", [[6]])
        model(text["input_ids"], None, text["attention_mask"])


def test_features_encoded_before():
    """Encoding under the run and passing features on works; features from elsewhere carry no choice."""
    model, batch = model_of("llava"), batch_of("llava", ONE)
    pixels = batch.pop("pixel_values")
    early = model.get_image_features(pixel_values=pixels, return_dict=True)
    expected = compressed(model, batch | {"pixel_values": pixels})[0]
    with foveate.compress(model, Drop(), keep=0.5) as run:
        own = model.get_image_features(pixel_values=pixels, return_dict=True)
        for _ in range(2):
            assert torch.equal(logits_of(model, batch, mm_encoder_outputs={"image": own}), expected)
        with refused(UnsupportedError, "not encoded under this run", "llava", "drop"):
            model(**batch, mm_encoder_outputs={"image": early})
        assert run.report.tokens_out == 18
    with foveate.compress(model, "fastervlm", keep=0.5), refused(UnsupportedError, "not encoded under this run"):
        model(**batch, mm_encoder_outputs={"image": own})


def test_features_and_placeholders_must_match():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    batch["input_ids"][0, 5] = 40
    with foveate.compress(model, "random", keep=0.5), refused(UnsupportedError, "35", "36", "placeholders"):
        logits_of(model, batch)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cache_implementation": "static"}, ["StaticLayer", "cache_implementation"]),
        ({"prefill_chunk_size": 8}, ["prefill_chunk_size"]),
        ({"cache_implementation": "offloaded"}, ["offloaded"]),
        ({"past_key_values": "quantized"}, ["Quantized"]),
        ({"past_key_values": "static"}, ["StaticLayer"]),
    ],
    ids=["static", "chunked", "offloaded", "quantized", "static object"],
)
def test_caches_that_cannot_hold_a_shortened_prompt(more, words):
    model, batch = model_of("llava"), batch_of("llava")
    if "prefill_chunk_size" in more and BEFORE_5_23:
        pytest.skip("stock loses the pictures of a prompt in chunks before any call can see them, attached or not")
    if more.get("past_key_values") == "static":
        more = {"past_key_values": StaticCache(config=model.config, max_cache_len=200)}
    elif more.get("past_key_values") == "quantized":
        from transformers.cache_utils import Cache, QuantizedLayer

        class Quantized(QuantizedLayer):
            def _quantize(self, tensor, axis):
                return tensor

            def _dequantize(self, tensor):
                return tensor

        more = {"past_key_values": Cache(layers=[Quantized() for _ in range(4)])}
    elif more.get("cache_implementation") == "offloaded" and not torch.cuda.is_available():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "Stream", lambda *_, **__: None)  # made for an accelerator
            more = {"past_key_values": DynamicCache(config=model.config, offloading=True)}
    with foveate.compress(model, "random", keep=0.5), refused(UnsupportedError, *words):
        model.generate(**batch, max_new_tokens=2, do_sample=False, **more)


def test_static_cache_is_fine_while_nothing_is_dropped():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    expected = model.generate(**batch, max_new_tokens=3, do_sample=False)
    with foveate.compress(model, "random", keep=1.0):
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, cache_implementation="static")
    assert torch.equal(out, expected)


def test_mask_of_ones_own():
    model, batch = model_of("llava"), batch_of("llava", ONE)
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with foveate.compress(model, "random", keep=0.5), refused(UnsupportedError, "two-dimensional", "(batch, length)"):
        logits_of(model, batch)


def test_video_passes_untouched_and_the_report_says_so():
    model = model_of("qwen2_vl")
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor([[tiny.BOS, 40, tiny.START, *[tiny.VIDEO] * 12, tiny.END, 50, 60]])
    pixels = torch.randn(2 * 4 * 6, 3 * 2 * tiny.PATCH**2, generator=draw)
    video = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == tiny.VIDEO).long(),
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[2, 4, 6]]),
    }
    stock, (sequences, steps) = logits_of(model, video), generated(model, video, 3)
    with foveate.compress(model, "fastervlm", keep=0.5) as run:
        assert torch.equal(logits_of(model, video), stock)
        for report in (run.report, [generated(model, video, 3), run.report][1]):
            assert report.images == () and "video" in report.notes[0] and "video" in str(report)
            assert report.sequence_in == report.sequence_out == ids.shape[1]
        again, again_steps = generated(model, video, 3)
        assert torch.equal(again, sequences) and torch.equal(again_steps, steps)
        # next to a picture, which is compressed
        picture = batch_of("qwen2_vl", ONE)
        both = {k: v for k, v in (video | picture).items() if k not in video or k not in picture}
        both |= {
            k: torch.cat([picture[k], video[k][:, 1:]], 1) for k in ("input_ids", "attention_mask", "mm_token_type_ids")
        }
        shorter = logits_of(model, both).shape[1]
        assert shorter == both["input_ids"].shape[1] - (run.report.tokens_in - run.report.tokens_out)
        assert run.report.tokens_in == 35 and "video" in run.report.notes[0]


def test_flash_attention_is_told_that_gaps_are_no_borders(monkeypatch):
    """Flash attention takes gaps in one row's positions for packed sequences. A stand-in with its rules shows it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    def stand_in(
        module, query, key, value, attention_mask, scaling=None, position_ids=None, cu_seq_lens_q=None, **kwargs
    ):
        q, k = query.shape[2], key.shape[2]
        mask = torch.ones(q, k, dtype=torch.bool).tril(k - q)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :k]
        elif cu_seq_lens_q is not None:
            assert cu_seq_lens_q.tolist() == [0, q]
        elif _is_packed_sequence(position_ids, len(query)):
            part = (position_ids.diff(prepend=position_ids[:, :1]) != 1).cumsum(1)
            mask = mask & (part[:, :, None] == part[:, None, :])[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("stand_in_for_flash", stand_in)
    AttentionMaskInterface.register("stand_in_for_flash", flash_attention_mask)
    for name in ("llava", "qwen2_5_vl"):
        model, flash = model_of(name), tiny.build(name)
        flash.config.get_text_config()._attn_implementation = "stand_in_for_flash"
        for prompts in (ONE, MIXED):
            batch = batch_of(name, prompts)
            with foveate.compress(model, Drop(), keep=0.5), foveate.compress(flash, Drop(), keep=0.5):
                torch.testing.assert_close(
                    logits_of(flash, batch)[:, -4:], logits_of(model, batch)[:, -4:], atol=1e-4, rtol=0
                )
                expected, ours = generated(model, batch, 4)[1], generated(flash, batch, 4)[1]
                torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
                if prompts is ONE:
                    monkeypatch.setattr(prompt, "_one_sequence", lambda *_: {})
                    assert (generated(flash, batch, 4)[1] - expected).abs().max() > 0.1 or name != "llava"
                    monkeypatch.undo()


# -- caches that stay ------------------------------------------------------------------------------------------------


def answered(model, batch, **more):
    with foveate.compress(model, Drop(), keep=0.5, **more):
        return model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)


def next_turn(out, batch):
    ids = torch.cat([out.sequences, torch.tensor([[41, 42, 43]]).expand(len(out.sequences), -1)], 1)
    fresh = ids.shape[1] - batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], batch["attention_mask"].new_ones(len(ids), fresh)], 1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "llama4"])
def test_cache_that_outlives_its_run(name):
    """Unpadded prompts with their original positions need nothing but the cache."""
    model, batch = model_of(name), batch_of(name, ONE)
    out = answered(model, batch)
    turn = next_turn(out, batch)
    _, stock = generated(model, turn, 3, past_key_values=copy.deepcopy(out.past_key_values))
    with foveate.compress(model, Drop(), keep=0.5):
        _, ours = generated(model, turn, 3, past_key_values=out.past_key_values)
        pictures = {k: v for k, v in batch.items() if k not in turn}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in pictures:
                new = turn["input_ids"].shape[1] - pictures[key].shape[1]
                pictures[key] = torch.nn.functional.pad(pictures[key], (0, new))
        _, again = generated(model, turn | pictures, 3)
    assert torch.equal(stock, ours)
    torch.testing.assert_close(stock, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["padded", "contiguous"])
def test_cache_that_needs_its_run(kind):
    model, batch = model_of("llava"), batch_of("llava", MIXED if kind == "padded" else ONE)
    more = {} if kind == "padded" else {"positions": "contiguous"}
    out = answered(model, batch, **more)
    turn = next_turn(out, batch)
    for _ in range(2):
        with refused(UnsupportedError, "shortened prompt", "attach again", "past_key_values"):
            model.generate(**turn, max_new_tokens=3, past_key_values=out.past_key_values)
    with foveate.compress(model, Drop(), keep=0.5, **more):
        _, ours = generated(model, turn, 3, past_key_values=out.past_key_values)
        _, again = generated(model, turn | {"pixel_values": batch["pixel_values"]}, 3)
    torch.testing.assert_close(ours, again, atol=1e-4, rtol=0)
    with refused(UnsupportedError, "shortened prompt"):
        logits_of(model, {"input_ids": turn["input_ids"][:, -1:]}, past_key_values=out.past_key_values)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_cache_can_be_copied_pickled_cropped_and_reset(name):
    model, batch = model_of(name), batch_of(name)
    out = answered(model, batch)
    turn, cache = next_turn(out, batch), out.past_key_values
    length = cache.get_seq_length()
    assert length == out.sequences.shape[1] - 1, "it counts what the caller counts"
    copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache]
    with foveate.compress(model, Drop(), keep=0.5):
        first, *others = [generated(model, turn, 3, past_key_values=c)[1] for c in copies]
        for other in others:
            assert torch.equal(other, first)
        cache.crop(length - cache.get_seq_length())
        assert cache.get_seq_length() == length
        assert torch.equal(generated(model, turn, 3, past_key_values=cache)[1], first)
        alone = {k: v[:1] for k, v in turn.items()}
        copies[0].crop(length - copies[0].get_seq_length())
        copies[0].batch_select_indices(torch.tensor([0]))
        chosen = generated(model, alone, 3, past_key_values=copies[0])[1]
        torch.testing.assert_close(chosen, first[:1], atol=1e-5, rtol=0)
        copies[1].crop(length - copies[1].get_seq_length())
        copies[1].batch_repeat_interleave(2)
        twice = {k: v.repeat_interleave(2, 0) for k, v in turn.items()}
        repeated = generated(model, twice, 3, past_key_values=copies[1])[1]
        torch.testing.assert_close(repeated, first.repeat_interleave(2, 0), atol=1e-5, rtol=0)
        cache.reset()
        assert cache.get_seq_length() == 0
        single = batch_of(name, ONE)
        again = generated(model, single, 3, past_key_values=cache)[1]
        assert torch.equal(again, generated(model, single, 3)[1])


def test_lazy_cache():
    """A cache that has no layers yet, given to plain forward calls."""
    model, batch = model_of("llava"), batch_of("llava", ONE)
    with foveate.compress(model, Drop(), keep=0.5), torch.no_grad():
        expected = generated(model, batch, 3)
        cache = DynamicCache()
        logits = model(**batch, past_key_values=cache, use_cache=True).logits[:, -1]
        for step in range(3):
            torch.testing.assert_close(logits, expected[1][:, step], atol=1e-5, rtol=0)
            token = logits.argmax(-1, keepdim=True)
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
    assert cache.get_seq_length() == batch["input_ids"].shape[1] + 3


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_forward_and_generate_continue_each_other(name, positions):
    """They number tokens in tensors of different shapes."""
    prompts = MIXED if name == "qwen2_5_vl" else ONE  # others count padding in forward, and not in generate
    model, batch = model_of(name), batch_of(name, prompts)
    length = batch["input_ids"].shape[1]
    with foveate.compress(model, Drop(), keep=0.5, positions=positions), torch.no_grad():
        sequences, steps = generated(model, batch, 4)
        asked = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
        cache = model.generate(**batch, **asked).past_key_values
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 2), value=1)
        token = sequences[:, length + 1 : length + 2]
        logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(logits[:, -1], steps[:, 2], atol=1e-4, rtol=0)
        given = {"position_ids": generation_positions(model, batch)}  # numbers that both would use
        cache = model(**batch | given, use_cache=True).past_key_values
        turn = {"input_ids": sequences[:, : length + 1], "attention_mask": mask[:, :-1]}
        _, ours = generated(model, turn, 3, past_key_values=cache)
        torch.testing.assert_close(ours, steps[:, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gemma3", "aya_vision", "llama4"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
def test_sliding_window_counts_stored_tokens(name, positions):
    """Past the window the stock model on the short prompt is the reference; also decoding, drafting and going back."""
    from reference import kept, places, short

    model, batch = tiny.build(name, window=24), batch_of(name)
    with foveate.compress(model, Drop(), keep=0.5, positions=positions) as run:
        _, ours = generated(model, batch, STEPS)
        keep, report = kept(places(name, MIXED, batch), run.report, batch), run.report
        one = batch_of(name, MIXED[1:2], first=1)
        greedy = generated(model, one, STEPS)[0]
        assert torch.equal(model.generate(**one, max_new_tokens=STEPS, do_sample=False, assistant_model=model), greedy)
    numbered = generation_positions(model, batch) if positions == "original" else None
    _, theirs = generated(model, short(model, batch, keep, report, numbered), STEPS)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# -- reports ---------------------------------------------------------------------------------------------------------


def test_report():
    model, batch = model_of("llava_next"), batch_of("llava_next")
    with foveate.compress(model, "fastervlm", keep=0.5) as run:
        out = logits_of(model, batch)
    report = run.report
    assert isinstance(report, Report) and report.plan == "fastervlm:keep=50%"
    assert [(i.sample, i.ordinal) for i in report.images] == [(0, 0), (1, 0), (1, 1)] and len(report.of(1)) == 2
    for image in report.images:
        structure = image.kind != 0
        assert image.tokens_in == int((~structure).sum()) and image.structure_in == int(structure.sum()) > 0
        assert image.tokens_out == image.stages[0][2] == image.stages[0][1] == (image.tokens_in + 1) // 2
        assert len(image.kept) == image.tokens_out + image.structure_out
        assert image.structure_out == int(structure[image.kept].sum()) > 0
        assert not image.capped and image.kept.device.type == "cpu" and (image.kept.diff() > 0).all()
    assert report.tokens_in == sum(i.tokens_in for i in report.images)
    assert report.layer_average == report.tokens_out / 3 and report.layers == 4
    assert (report.sequence_in, report.sequence_out) == (batch["input_ids"].shape[1], out.shape[1])
    assert report.seconds > 0
    assert json.loads(json.dumps(report.to_dict()))["images"][2]["kept"] == report.images[2].kept.tolist()
    text = str(report)
    for word in ("fastervlm:keep=50%", "sample 1 image 1", "structure", "columns", "choosing"):
        assert word in text


def test_budgets_in_reports():
    model, batch = model_of("llava"), batch_of("llava")
    stock = logits_of(model, batch)
    for keep, out, capped in [
        (99, 36, True),
        (36, 36, False),
        (1.0, 36, False),
        ("300/total", 36, True),
        (5, 5, False),
    ]:
        ours, report = compressed(model, batch, keep)
        assert [(i.tokens_out, i.capped) for i in report.images] == [(out, capped)] * 3
        assert ("fewer than asked" in str(report)) == capped
        assert torch.equal(ours, stock) == (out == 36)
    with foveate.compress(model, Drop(), keep="=99/image"), refused(KeepError, "99", "36"):
        logits_of(model, batch)
    assert torch.equal(logits_of(model, batch), stock)
    _, report = compressed(model, batch, "20/total")
    assert [i.tokens_out for i in report.images] == [20, 10, 10]
    _, report = compressed(model_of("llava_next"), batch_of("llava_next"), "30/total", split="equal")
    assert [i.tokens_out for i in report.images] == [30, 15, 15]
