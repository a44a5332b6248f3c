"""lmms-eval's model: spellings of a plan, batches and options, what is refused, and a whole run that equals the runner's."""

import json
import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from foveate import Plan, testbed
from foveate.errors import FoveateError, KeepError, PlanError, UnsupportedError
from foveate.harness import lmms, task

HAS = find_spec("lmms_eval") is not None
needs_lmms = pytest.mark.skipif(not HAS, reason="lmms-eval is not installed (extra eval, an environment of its own)")


# -------------------------------------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    ("text", "keep", "plan"),
    [
        ("divprune", 64, "divprune:keep=64"),
        ("divprune", 0.25, "divprune:keep=0.25"),
        ("divprune", "25%", "divprune:keep=25%"),
        ("divprune:keep=64", None, "divprune:keep=64"),
        ("fastv:layer=2;keep=0.5", None, "fastv:layer=2,keep=0.5"),
        ("tome:keep=0.5 > fastv:layer=2;keep=0.5", None, "tome:keep=0.5 > fastv:layer=2,keep=0.5"),
        ('"fastv:layer=2,keep=0.5"', None, "fastv:layer=2,keep=0.5"),
        ("embedlens:keep=64;sink=(1;2);dead=(3;)", None, "embedlens:keep=64,sink=(1,2),dead=(3,)"),
    ],
)
def test_spellings_of_a_plan(text, keep, plan):
    assert lmms.read_plan(text, keep) == Plan.of(plan)


def test_a_plan_file_and_no_plan(tmp_path):
    plan = Plan.of("fastv:layer=2,keep=0.5", positions="contiguous")
    plan.save(tmp_path / "plan.json")
    assert lmms.read_plan(str(tmp_path / "plan.json")) == plan
    assert lmms.read_plan() is lmms.read_plan("none") is None
    assert lmms.read_plan("divprune", 64, "contiguous").positions == "contiguous"
    for text, keep, kind, says in [
        (None, 64, UnsupportedError, "without a plan"),
        ("missing.json", None, UnsupportedError, "no plan file"),
        ("divprnue", 64, PlanError, "divprnue"),
        ("divprune", 9.0, KeepError, "9.0"),
    ]:
        with pytest.raises(kind, match=says):
            lmms.read_plan(text, keep)


@needs_lmms
@pytest.mark.parametrize(
    "text",
    [
        "plan=divprune,keep=64",
        "plan=divprune:keep=64",
        'plan="divprune:keep=64,split=equal"',
        "plan=divprune:keep=64;split=equal",
    ],
)
def test_spellings_survive_the_command_line(text):
    from lmms_eval.utils import simple_parse_args_string

    found = simple_parse_args_string(f"pretrained=testbed,{text},dtype=float32")
    assert set(found) <= {"pretrained", "plan", "keep", "dtype"}
    expected = Plan.of("divprune", 64, split="equal" if "split" in text else None)
    assert lmms.read_plan(found["plan"], found.get("keep")) == expected


# ------------------------------------------------------------------------------------------- batches, options, refusals


def request(task="t", doc=0, **options):
    return SimpleNamespace(args=("", None, options, doc, task, "test"), metadata={})


def test_batches_keep_the_order_and_never_mix_tasks_or_options():
    some = [request(), request(task="u"), request(), request(temperature=0.7), request(), request(task="u")]
    assert list(lmms._batches(some, 2)) == [[0, 2], [4], [1, 5], [3]]
    assert list(lmms._batches([request(until=["a"]) for _ in range(5)], 3)) == [[0, 1, 2], [3, 4]]


def test_generation_arguments():
    bare = lmms.Adapter.__new__(lmms.Adapter)
    bare.max_new_tokens, bare._ignored = 99, {"image_aspect_ratio"}
    options = {
        "until": ["\n\n", ""],
        "max_new_tokens": 7,
        "temperature": 0.0,
        "image_aspect_ratio": "pad",
        "top_p": None,
    }
    assert bare._decoding(options) == {"until": ["\n\n"], "max_new_tokens": 7, "temperature": 0.0}
    assert bare._decoding({"until": "stop", "num_beams": 2}) == {
        "until": ["stop"],
        "max_new_tokens": 99,
        "num_beams": 2,
    }
    assert bare._decoding({"until": None}) == {"until": [], "max_new_tokens": 99}


def test_what_is_refused():
    bare = lmms.Adapter.__new__(lmms.Adapter)
    for call, says in [(bare.loglikelihood, "loglikelihood"), (bare.generate_until_multi_round, "multi_round")]:
        with pytest.raises(UnsupportedError, match=says) as told:
            call([])
        assert "generate_until" in told.value.hint
    with pytest.raises(UnsupportedError, match="unknown model_args: keeps"):
        lmms.Adapter("no such model", keeps=64)
    for size in ("auto", 0, "-1"):
        with pytest.raises(UnsupportedError, match="batch_size="):
            lmms.Adapter("no such model", batch_size=size)
    with pytest.raises(PlanError):  # before a model is loaded
        lmms.Adapter("no such model", plan="divprnue", keep=3)


# ------------------------------------------------------------------------------------------------------- inside lmms-eval


@pytest.fixture(scope="module")
def made(folder):
    def make(**options):
        from lmms_eval.models.registry_v2 import ModelRegistryV2

        registry = ModelRegistryV2()
        registry.register_manifest(lmms.manifest())
        return registry.get_model_class("foveate")(pretrained=folder, device="cpu", **options)

    return make


def instances(model, documents, to_messages=task.messages_with_pictures, **options):
    """Requests as lmms-eval makes them, and the documents where it keeps them."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"t": {"test": documents}}
    told = {"task": "t", "doc_id": 0, "repeats": 1}
    return [
        Instance("generate_until", ("", to_messages, {"max_new_tokens": 10, **options}, i, "t", "test"), 0, dict(told))
        for i in range(len(documents))
    ]


def documents(samples):
    return [
        {"images": s.images, "question": s.question, "history": json.dumps(s.history), "slice": s.slice}
        for s in samples
    ]


@needs_lmms
@pytest.mark.parametrize("plan", [None, "divprune:keep=64"])
def test_requests_get_the_runners_answers(made, samples, asked, plan):
    """One picture, two pictures and earlier turns, in left-padded batches of four."""
    from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history

    model = made(plan=plan, batch_size="4")
    found = model.generate_until(instances(model, documents(samples), until=["\n\n"]))
    assert [one.text for one in found] == asked(plan)
    assert (model.tally.prompts, model.tally.images, model.tally.before) == (6, 8, 8 * 576)
    left = 64 if plan else 576
    assert model.tally.after == 8 * left
    assert found[0].token_counts.output_tokens == 2  # a word and the end
    processor = model._answerer.processor
    fed = testbed.inputs(processor, samples[:1])
    assert found[0].token_counts.input_tokens == fed["input_ids"].shape[1] - 576 + left
    assert get_logged_metrics_history()[-1]["visual_tokens_per_image_after"] == left
    model.clean()
    assert model._answerer is None


@needs_lmms
def test_the_summary_is_logged(made, samples):
    from loguru import logger

    lines = []
    sink = logger.add(lines.append, level="INFO")
    try:
        model = made(plan="divprune", keep=16, batch_size=2)
        requests = instances(model, documents(samples[:2]), surprise=1)
        requests[1].metadata["__padding_only__"] = True  # as lmms-eval fills up the last round of several processes
        model.generate_until(requests)
    finally:
        logger.remove(sink)
    text = "".join(lines)
    assert (
        "foveate, divprune:keep=16/image: 1 prompts, 1 images; visual tokens per image: 576.0 before, 16.0 after"
        in text
    )
    assert text.count("ignores these generation_kwargs: surprise") == 1


@needs_lmms
def test_text_only_requests_and_stop_texts(made):
    def to_messages(doc):
        return [{"role": "user", "content": [{"type": "text", "text": doc}]}]

    questions = ["what color is it", "where is the small triangle now", "is there a red square"]
    model = made(plan="divprune", keep=16, batch_size=2, max_new_tokens=6)
    found = model.generate_until(instances(model, questions, to_messages, max_new_tokens=None))
    said = [one.text for one in found]
    assert model.tally.images == 0 and all(said) and len(set(said)) > 1
    stop = said[1][2:4]
    again = model.generate_until(instances(model, questions, to_messages, until=stop))
    assert [one.text for one in again] == [text.split(stop)[0].strip() for text in said]


@needs_lmms
def test_video_is_refused(made):
    def to_messages(doc):
        return [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": doc}]}]

    model = made()
    with pytest.raises(FoveateError, match="holds video"):
        model.generate_until(instances(model, ["what"], to_messages))


@needs_lmms
@pytest.mark.skipif(
    not [e for e in entry_points(group="lmms_eval.models") if e.name == "foveate"] if HAS else True,
    reason="foveate is not installed next to lmms-eval",
)
@pytest.mark.parametrize("arguments", ["", ",plan=divprune:keep=64"])
def test_a_whole_run_has_the_runners_answers_and_accuracy(tmp_path, monkeypatch, folder, arguments):
    """Found by its entry point, on the exported task, without a network."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from foveate.bench.runner import STOCK, Entry, answers
    from foveate.bench.tasks import testbed_task

    limit, batch = int(os.environ.get("FOVEATE_TEST_QUESTIONS", 2)), 8
    count = task.export(tmp_path / "task", limit=limit)
    manager = TaskManager("WARNING", include_path=str(tmp_path / "task"), model_name="foveate")
    found = simple_evaluate(
        model="foveate",
        model_args=f"pretrained=testbed{arguments}",
        tasks=[task.NAME],
        batch_size=batch,
        device="cpu",
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    model, processor = testbed.load(path=folder)
    asked = testbed_task(None, limit)
    plan = Plan.of("divprune:keep=64") if arguments else None
    entries = [Entry(STOCK, None)] + ([Entry("plan", plan)] if plan else [])
    said = answers(model, processor, asked, entries, batch, 10)[0][entries[-1].label]
    logged = sorted(found["samples"][task.NAME], key=lambda one: one["doc_id"])
    assert [one["filtered_resps"][0] for one in logged] == said and len(said) == count == 11 * limit
    right = [asked.correct(text, sample) for text, sample in zip(said, asked.samples, strict=True)]
    scores = found["results"][task.NAME]
    assert scores["accuracy,none"] == pytest.approx(sum(right) / len(right))
    for part in asked.slices():
        mine = [r for r, sample in zip(right, asked.samples, strict=True) if sample.slice == part]
        assert scores[f"{part},none"] == pytest.approx(sum(mine) / len(mine))
    throughput = found["throughput"]
    assert throughput["avg_visual_tokens_per_image_before"] == 576
    assert throughput["avg_visual_tokens_per_image_after"] == (64 if arguments else 576)
