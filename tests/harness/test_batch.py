"""`Answer`: the runner's answers for any form of picture, under one plan or several, alone, in datasets.map and in Ray."""

import io
import pickle
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import Plan, testbed
from foveate.errors import FoveateError, KeepError, PlanError, UnsupportedError
from foveate.harness import Answer, answering
from foveate.harness.answering import Answerer, Prompt, Said, Tally
from foveate.harness.task import messages

PLAN = "divprune:keep=64"


def rows(samples):
    """Columns as the exported parquet has them, but with a number instead of what is not needed."""
    import json

    return {
        "id": [s.id for s in samples],
        "images": [s.images for s in samples],
        "question": [s.question for s in samples],
        "history": [json.dumps(s.history) for s in samples],
    }


def in_batches(answer, columns, size):
    """What a harness does: batch after batch, columns joined again."""
    parts = [answer({k: v[i : i + size] for k, v in columns.items()}) for i in range(0, len(columns["id"]), size)]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


@pytest.fixture(scope="module")
def answerer(folder):
    return Answerer(folder)


# ---------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("plan", [None, PLAN, "fastv:layer=2,keep=0.25"])
def test_answers_and_counts_are_the_runners(folder, samples, asked, plan):
    answer = Answer(folder, plan, messages=messages, max_new_tokens=10)
    found = in_batches(answer, rows(samples), 4)
    assert found["answer"] == asked(plan)
    assert found["id"] == [s.id for s in samples] and "images" not in found
    images = [len(s.images) for s in samples]
    assert found["tokens_before"] == [576 * n for n in images]
    left = {None: 576, PLAN: 64, "fastv:layer=2,keep=0.25": 144}[plan]
    assert found["tokens_after"] == [left * n for n in images]
    over = {None: 576, PLAN: 64, "fastv:layer=2,keep=0.25": (2 * 576 + 3 * 144) / 5}[plan]
    assert found["tokens_over_layers"] == pytest.approx([over * n for n in images])


def test_tokens_read_are_those_that_enter_the_language_model(answerer, samples):
    read = [
        answerer.answer([prompt_of(samples[0])], plan and Plan.of(plan), max_new_tokens=1)[0].read
        for plan in (None, PLAN, "fastv:layer=2,keep=0.25", f"{PLAN} > fastv:layer=2,keep=0.5")
    ]
    assert read[0] == testbed.inputs(answerer.processor, samples[:1])["input_ids"].shape[1]
    assert [n - read[0] for n in read] == [0, -512, 0, -512]


def test_compression_changes_what_is_said(asked):
    assert asked(None) != asked("divprune:keep=2")  # or equal answers would prove nothing


def test_several_plans_in_one_pass(folder, samples):
    columns = rows(samples)
    several = Answer(folder, plans=[None, PLAN], messages=messages, max_new_tokens=10)(columns)
    assert several["plan"] == ["uncompressed"] * 6 + ["divprune:keep=64/image"] * 6
    assert several["id"] == columns["id"] * 2
    for i, plan in enumerate((None, PLAN)):
        one = Answer(folder, plan, messages=messages, max_new_tokens=10)(columns)
        for name in ("answer", "tokens_before", "tokens_after", "tokens_over_layers"):
            assert several[name][6 * i : 6 * (i + 1)] == one[name]


def test_rows_without_pictures_are_answered_as_if_alone(folder, samples):
    picture, *_ = samples[0].images
    columns = {"images": [[picture], [], None, picture], "question": ["what color is it"] * 4}
    found = Answer(folder, PLAN, max_new_tokens=10)(columns)
    assert found["tokens_before"] == [576, 0, 0, 576] and found["tokens_after"] == [64, 0, 0, 64]
    assert found["answer"][0] == found["answer"][3]
    alone = Answer(folder, max_new_tokens=10)({"images": [None] * 2, "question": columns["question"][:2]})
    assert found["answer"][1:3] == alone["answer"]


def test_every_form_of_a_picture_is_the_same_picture(folder, samples, tmp_path):
    picture = samples[0].images[0]
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    array = np.asarray(picture)
    objects = np.empty(1, dtype=object)
    objects[0] = {"bytes": data, "path": None}
    cells = [picture, [picture], data, {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, str(path)]
    cells += [array, array[None], objects, picture.convert("RGBA")]
    for cell in cells:
        (prompt,) = [Answer(folder)._prompt({"images": [cell], "question": ["a"]}, 0)]
        assert len(prompt.images) == 1 and prompt.images[0].mode == "RGB"
        assert np.array_equal(np.asarray(prompt.images[0]), array), type(cell)


def prompt_of(sample):
    (one,) = [{name: column[0] for name, column in rows([sample]).items()}]
    return Prompt(messages(one), sample.images)


def test_a_short_prompt_beside_a_long_one_says_what_it_says_alone(answerer, samples):
    prompts = [prompt_of(samples[i]) for i in (0, -1, 2)]
    for plan in (None, Plan.of("divprune:keep=8")):
        together = answerer.answer(prompts, plan, max_new_tokens=10)
        assert [one.text for one in together] == [
            answerer.answer([p], plan, max_new_tokens=10)[0].text for p in prompts
        ]
        assert together[0].read < together[1].read and all(one.text for one in together)


def test_a_picture_is_turned_upright():
    tall = Image.new("RGB", (2, 6))
    exif = tall.getexif()
    exif[0x0112] = 6  # lies on its side
    buffer = io.BytesIO()
    tall.save(buffer, "jpeg", exif=exif)
    assert answering.picture(buffer.getvalue()).size == (6, 2)


def test_the_first_token_stands_once(folder, samples):
    """Also with a tokenizer that adds one to a text which has it already, as many do."""
    from tokenizers.processors import TemplateProcessing

    answerer = Answerer(folder)
    before = answerer.answer([prompt_of(samples[0])], max_new_tokens=2)
    tokenizer = answerer.processor.tokenizer
    bos = tokenizer.bos_token
    pair = [(bos, tokenizer.bos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=pair)
    assert tokenizer("what")["input_ids"][0] == tokenizer.bos_token_id
    assert answerer.answer([prompt_of(samples[0])], max_new_tokens=2) == before


def test_processors_without_a_chat_format(samples, folder):
    bare = Answerer(folder)
    bare.processor.chat_template = None
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color"}]}]
    assert bare._text(Prompt(question, samples[0].images)) == "<image>what color"
    with pytest.raises(UnsupportedError, match="no chat template"):
        bare._text(Prompt(question * 2))


def test_an_answer_ends_before_a_stop_text_and_costs_no_more(answerer, samples):
    prompts = [prompt_of(sample) for sample in samples]
    plan = Plan.of("divprune:keep=2")  # so few that some answers are long
    whole = answerer.answer(prompts, plan, max_new_tokens=10)
    longest = max(whole, key=lambda one: one.written)
    middle = len(longest.text) // 2
    stop = longest.text[middle : middle + 2]
    cut = answerer.answer(prompts, plan, max_new_tokens=10, until=[stop, "never said"])
    assert [one.text for one in cut] == [one.text.split(stop)[0].strip() for one in whole]
    alone = answerer.answer([prompts[whole.index(longest)]], plan, max_new_tokens=10, until=[stop])
    assert longest.written > 4 and alone[0].written < longest.written


def test_length_counts_up_to_the_end_token(answerer):
    end = answerer.model.generation_config.eos_token_id
    assert answerer._length(torch.tensor([5, 6, end, 0, 0])) == 3
    assert answerer._length(torch.tensor([5, 6, 7, 8])) == 4


@pytest.mark.parametrize(
    ("options", "sample"),
    [
        ({}, False),
        ({"temperature": 0.0, "top_p": 1.0}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"do_sample": True}, True),
    ],
)
def test_greedy_unless_sampling_is_asked_for(options, sample):
    found = answering._decoding(options)
    assert found["do_sample"] is sample
    if sample:
        assert found.get("temperature") == options.get("temperature")
    else:
        assert found["temperature"] is None and found["top_p"] is None


def test_a_tally_adds_up():
    tally = Tally()
    tally.add(
        [Said("a", 1, 576, 64, 64.0, 80, 2), Said("b", 0, 0, 0, 0.0, 9, 3), Said("c", 2, 1152, 128, 96.0, 150, 1)]
    )
    assert (tally.prompts, tally.images, tally.read, tally.written) == (3, 3, 239, 6)
    assert tally.per_image() == {"before": 576.0, "after": 64.0, "over_layers": pytest.approx(160 / 3)}
    assert "3 prompts, 3 images" in str(tally) and "576.0 before, 64.0 after" in str(tally)
    assert Tally().per_image()["before"] == 0


# ------------------------------------------------------------------------------------------------------- life in a harness


def test_it_can_be_sent_before_and_after_the_model_is_loaded_once(folder, samples, monkeypatch):
    loads = []
    load = answering._load
    monkeypatch.setattr(answering, "_load", lambda *a: loads.append(a) or load(*a))
    answer = Answer(folder, PLAN, messages=messages, max_new_tokens=2)
    assert not loads and len(pickle.dumps(answer)) < 10_000
    first = answer(rows(samples[:2]))
    assert answer(rows(samples[:2])) == first and len(loads) == 1
    sent = pickle.dumps(answer)
    assert len(sent) < 10_000, "the model went along"
    assert pickle.loads(sent)(rows(samples[:2])) == first and len(loads) == 2


def test_importing_the_adapters_imports_no_harness():
    code = (
        "import sys, foveate.harness, foveate.harness.answering, foveate.harness.batch, foveate.harness.lmms, "
        "foveate.harness.task\nprint(sorted({'lmms_eval', 'ray', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    light = "import sys, foveate.harness, foveate.harness.lmms; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", light], text=True).strip() == "False"


# ----------------------------------------------------------------------------------------------------------------- errors

GOOD = {"images": [None, None], "question": ["a", "b"]}


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"picture": [1], "question": ["a"]}, "no column 'images'; the batch has 'picture', 'question'"),
        ({"images": [None]}, "no column 'question'"),
        (GOOD | {"question": ["a"]}, "unequal length"),
        (GOOD | {"answer": [1, 2]}, "has a column 'answer' already"),
        (GOOD | {"question": "a"}, "batched=True"),
        (GOOD | {"images": Image.new("RGB", (4, 4))}, "batched=True"),
        (GOOD | {"question": ["a", 3]}, "row 1 of column 'question': int is not a text"),
        (GOOD | {"images": [None, 7]}, "row 1 of column 'images': int is not a picture"),
        (GOOD | {"images": [b"no image", None]}, "row 0 of column 'images': not a picture"),
        (GOOD | {"images": ["/nowhere.png", None]}, "row 0 of column 'images'.*nowhere"),
        (GOOD | {"images": [np.zeros((2, 2, 3)), None]}, r"ndarray \(2, 2, 3\) of float64"),
        ([("images", None)], "a batch is a dictionary of columns, not a list"),
    ],
)
def test_bad_batches_are_told_before_a_model_is_loaded(batch, says):
    with pytest.raises(UnsupportedError, match=says) as told:
        Answer("no such model")(batch)
    assert isinstance(pickle.loads(pickle.dumps(told.value)), UnsupportedError)  # an actor's error has to travel


def test_messages_need_a_place_for_each_picture(samples):
    answer = Answer(
        "no such model", messages=lambda row: [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    )
    with pytest.raises(UnsupportedError, match="row 0 of column 'images': 1 pictures, but the messages have 0 places"):
        answer({"images": [samples[0].images]})


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"plan": "divprnue", "keep": 64}, PlanError, "divprnue"),
        ({"plan": "divprune"}, PlanError, "no budget"),
        ({"plan": "divprune", "keep": 9.0}, KeepError, "9.0"),
        ({"keep": 64}, UnsupportedError, "without a plan"),
        ({"plan": PLAN, "plans": [PLAN]}, UnsupportedError, "one plan, or a list"),
        ({"plans": PLAN}, UnsupportedError, "one plan, or a list"),
        ({"plans": []}, UnsupportedError, "one plan, or a list"),
    ],
)
def test_bad_plans_are_told_at_once(options, kind, says):
    with pytest.raises(kind, match=says):
        Answer(**options)


def test_models_that_cannot_be_had(tmp_path):
    with pytest.raises(FoveateError, match="cannot be loaded as a vision-language model"):
        Answer(str(tmp_path))(GOOD)


# -------------------------------------------------------------------------------------------------------- real harnesses


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed (extra eval)")
def test_datasets_map_says_the_same(folder, samples, asked, tmp_path):
    import datasets

    columns = rows(samples)
    buffers = [[io.BytesIO() for _ in images] for images in columns["images"]]
    for files, images in zip(buffers, columns["images"], strict=True):
        for file, image in zip(files, images, strict=True):
            image.save(file, "png")
    columns["images"] = [[{"bytes": file.getvalue(), "path": None} for file in files] for files in buffers]
    table = datasets.Dataset.from_dict(columns).cast_column("images", datasets.features.features.List(datasets.Image()))
    answer = Answer(folder, PLAN, messages=messages, max_new_tokens=10)
    found = table.map(answer, batched=True, batch_size=4, new_fingerprint="one")
    assert found["answer"] == asked(PLAN)
    assert set(table.column_names) < set(found.column_names) and found["tokens_after"] == [64, 64, 128, 128, 64, 64]
    loaded = table.map(answer, batched=True, batch_size=4)  # the fingerprint pickles it, now with its model
    assert loaded["answer"] == found["answer"]
    several = Answer(folder, plans=[None, PLAN], messages=messages, max_new_tokens=10)
    both = table.map(several, batched=True, batch_size=4, remove_columns=table.column_names)
    for plan, name in ((None, "uncompressed"), (PLAN, "divprune:keep=64/image")):
        mine = [row["answer"] for row in both if row["plan"] == name]
        assert mine == asked(plan)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra ray)")
def test_two_ray_actors_say_the_same(folder, samples, asked):
    import ray

    columns = rows(samples)
    files = []
    for images in columns["images"]:
        files.append([io.BytesIO() for _ in images])
        for file, image in zip(files[-1], images, strict=True):
            image.save(file, "png")
    columns["images"] = [[file.getvalue() for file in some] for some in files]
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=128 * 2**20, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        table = ray.data.from_items([{k: v[i] for k, v in columns.items()} for i in range(len(samples))])
        found = table.repartition(target_num_rows_per_block=4, strict=True).map_batches(
            Answer,
            fn_constructor_kwargs={"model": folder, "plan": PLAN, "messages": messages, "max_new_tokens": 4},
            batch_size=4,
            compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0.5,
        )
        said = found.take_all()
    finally:
        ray.shutdown()
    assert [row["id"] for row in said] == columns["id"]
    assert [row["answer"] for row in said] == asked(PLAN)
    assert [row["tokens_after"] for row in said] == [64, 64, 128, 128, 64, 64]
