"""Searches on functions whose best schedule is known, and the whole path on a tiny random model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from bench import stub
from foveate.bench.search import search as searching
from foveate.bench.search.search import Trial, gsearch, most, psigmoid, vtw
from foveate.errors import KeepError, UnsupportedError
from foveate.plan import Plan


def told(value, depth: int = 5, n: int = 100, **more):
    """A trial that runs no model. value: from the options of a plan's method, or {} without a plan, to a number."""
    trial = SimpleNamespace(depth=depth, tokens=lambda: n, plans=[], **more)

    def of(plan):
        trial.plans.append(plan)
        return value({} if plan is None else plan.steps[0].method.options())

    trial.value = of
    return trial


# -- layer by layer ----------------------------------------------------------------------------------------------------


def needs(*least):
    """All is well while each layer keeps at least its share."""
    return lambda options: float(all(s >= m for s, m in zip(options.get("shares", least), least, strict=True)))


@pytest.mark.parametrize(
    "least", [(1, 0.5, 0.2, 0.1, 0.01), (1, 0.9, 0.9, 0.0, 0.0), (1, 0.0, 0.0, 0.0, 0.0), (1, 0.1, 0.1, 0.1, 0.1)]
)
def test_gsearch_finds_the_least_of_every_layer(least):
    trial = told(needs(*least))
    found = gsearch(trial, 0.02)
    assert found.plan.steps[0].method.shares == least
    assert found.plan.steps[0].keep is None
    assert len(trial.plans) <= most("gsearch", 5)
    assert [one["value"] for one in found.history] == [needs(*least)({"shares": _shares(p)}) for p in trial.plans[1:]]


def _shares(plan):
    return plan.steps[0].method.shares


def test_gsearch_takes_the_next_share_on_its_grid():
    trial = told(needs(1, 0.33, 0.33, 0.12, 0.12))
    assert gsearch(trial).plan.steps[0].method.shares == (1, 0.4, 0.4, 0.15, 0.15)
    assert gsearch(trial, grid=(0.5, 0.25)).plan.steps[0].method.shares == (1, 0.5, 0.5, 0.25, 0.25)


def test_gsearch_may_find_that_all_is_needed():
    found = gsearch(told(needs(1, 1, 1, 1, 1)))
    assert found.plan is None and found.history


def test_gsearch_may_lose_as_much_as_it_is_told():
    slope = told(lambda options: sum(options.get("shares", [1] * 5)) / 5)
    assert gsearch(slope, 0.0).plan is None
    shares = gsearch(slope, 0.1).plan.steps[0].method.shares
    assert sum(shares) / 5 >= 0.9 - 1e-9 and shares[-1] < 1


def test_gsearch_asks_for_a_layer_a_few_times():
    assert most("gsearch", 32) == 1 + 31 * 4
    assert (most("psigmoid", 32, 24), most("vtw", 32)) == (24, 31)


# -- a sigmoid ---------------------------------------------------------------------------------------------------------


def test_psigmoid_finds_a_peak():
    """Better than the same number of draws by chance, at one budget for all."""

    def peak(steep, low):
        return -((np.log(steep / 30) / np.log(10)) ** 2) - (low / 0.2 - 0.7) ** 2

    trial = told(lambda options: peak(options.get("steep", 10.0), options.get("low", 0.0)))
    found = psigmoid(trial, 0.4, 24)
    assert len(trial.plans) == len(found.history) == 24 and len({str(p) for p in trial.plans}) == 24
    assert {str(p.steps[0].keep) for p in trial.plans} == {"40%"}
    method = found.plan.steps[0].method
    reached = peak(method.steep, method.low)
    assert reached == pytest.approx(max(one["value"] for one in found.history))
    draw = np.random.default_rng(0)
    chance = [max(peak(10 ** (2 * a), 0.25 * b) for a, b in draw.random((24, 2))) for _ in range(200)]
    assert reached > np.quantile(chance, 0.9)


def test_psigmoid_is_the_same_again_and_begins_with_the_default():
    trials = [told(lambda options: -options.get("low", 0.0)) for _ in range(2)]
    first, again = (psigmoid(trial, "30%", 10, seed=3) for trial in trials)
    assert first.plan == again.plan and first.history == again.history
    assert first.history[0]["options"] == {}
    assert psigmoid(told(lambda options: 0.0), 0.3, 1).plan == Plan.of("psigmoid", 0.3)


def test_psigmoid_has_no_floor_where_the_budget_allows_none():
    trial = told(lambda options: 0.0)
    psigmoid(trial, 15, 10)
    assert all(p.steps[0].method.low == 0 for p in trial.plans)


def test_psigmoid_tries_schedules_that_differ():
    trial = told(lambda options: 0.0, n=40)
    psigmoid(trial, 0.4, 16)
    counts = [tuple(p.steps[0].method.lengths(40, 16, 5)) for p in trial.plans]
    assert len(set(counts)) == len(counts) == 16
    alone = told(lambda options: 0.0)
    assert psigmoid(alone, 10, 10).plan == Plan.of("psigmoid", 10), (
        "all of the first layer, and one token in the others"
    )
    assert len(alone.plans) == 1


def test_psigmoid_reads_its_budget():
    trial = told(lambda options: 0.0)
    with pytest.raises(KeepError):
        psigmoid(trial, 2.5)


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_vtw_takes_the_first_layer_that_diverges_little_enough():
    """KL(q || p) of two tokens: p the whole model's (1/2, 1/2), q with the picture gone."""
    shares = {1: 0.9, 2: 0.6, 3: 0.5, 4: 0.8}

    def next_token(plan):
        q = 0.5 if plan is None else shares[plan.steps[0].method.layer]
        return torch.tensor([[q, 1 - q]]).log()

    def kl(q):
        return q * np.log(q / 0.5) + (1 - q) * np.log((1 - q) / 0.5)

    trial = SimpleNamespace(depth=5, next_token=next_token)
    found = vtw(trial, 0.003)
    assert found.plan == Plan.of("vtw:layer=3")
    assert [one["divergence"] for one in found.history] == pytest.approx([kl(0.9), kl(0.6), 0.0], abs=1e-6)
    assert vtw(trial, 0.03).plan == Plan.of("vtw:layer=2")
    shares[3] = 0.7
    assert vtw(trial, 1e-4).plan is None


# -- on a model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny.build("llava")


@pytest.fixture(scope="module")
def task(model):
    return stub.task(model)


def test_a_trial_says_what_generate_says(model, task):
    trial = Trial(model, stub.Processor(), task, batch=4, max_new_tokens=3)
    assert trial.depth == 4 and trial.tokens() == 36
    for sample, said in zip(task.samples, trial.stock, strict=True):
        batch = stub.Processor()([sample])
        out = model.generate(**batch, max_new_tokens=3, do_sample=False)
        assert said == stub.Processor().batch_decode(out[:, batch["input_ids"].shape[1] :])[0]
    assert trial.value(None) == 1.0
    assert trial.value(Plan.of("gsearch:shares=(1.0,1.0,1.0,1.0)")) == 1.0
    exact = trial.next_token(Plan.of("gsearch:shares=(1.0,1.0,1.0,1.0)"))
    torch.testing.assert_close(exact, trial.next_token(None))
    assert float(trial.next_token(None).exp().sum(-1).sub(1).abs().max()) < 1e-4
    right = Trial(model, stub.Processor(), task, metric="accuracy", batch=4, max_new_tokens=3)
    assert right.value(None) == sum(right.right(right.stock)) / len(task.samples) >= 0.5


@pytest.mark.parametrize("method", searching.METHODS)
def test_the_whole_search(model, task, method, tmp_path):
    ticks = []
    keep = 0.5 if method == "psigmoid" else None
    plan, result = searching.search(
        model,
        stub.Processor(),
        method,
        (task, task, "the same twice"),
        keep=keep,
        evaluations=4,
        eps=1.0,
        eta=1e9,
        batch=4,
        max_new_tokens=2,
        tick=ticks.append,
    )
    assert plan.steps[0].method.name == method and result["plan"] == str(plan)
    assert result["tried"] == len(ticks) <= most(method, 4, 4)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    checked = result["checked_on"]
    assert checked == result["searched_on"]
    assert checked["shares"][0] == 1.0 and checked["shares"] == sorted(checked["shares"], reverse=True)
    assert checked["mean_share"] == pytest.approx(sum(checked["tokens"]) / 4 / 36)
    assert checked["agreement"]["low"] <= checked["agreement"]["accuracy"] <= checked["agreement"]["high"]
    assert checked["change"]["difference"] <= 0 < result["flops"]["layers"] < 1
    searched, *others = result["by_hand"]
    assert searched["plan"] == str(plan) and [row["plan"].split(":")[0] for row in others] == ["fastv", "pdrop"]
    assert searched["agreement"] == checked["agreement"] and all(
        row["samples"] == searched["samples"] for row in others
    )
    for row in others:  # near, or as far as the method goes
        assert not row["equal"] or row["layers"] == pytest.approx(searched["layers"], rel=0.021)
        assert -1 <= row["behind"]["low"] <= row["behind"]["difference"] <= row["behind"]["high"] <= 1
    if method == "psigmoid":
        assert 0.4 < checked["mean_share"] <= 0.5
    else:
        assert checked["shares"] == [1.0, 0.0, 0.0, 0.0], "whatever is lost"


def test_refusals(model, task):
    with pytest.raises(UnsupportedError, match="no search"):
        searching.check("fastv", None)
    for method, keep in (("gsearch", 0.5), ("psigmoid", None)):
        with pytest.raises(UnsupportedError, match="budget"):
            searching.check(method, keep)
    with pytest.raises(UnsupportedError, match="metric"):
        Trial(model, stub.Processor(), task, metric="speed")
    unknown = SimpleNamespace(samples=[SimpleNamespace(answer=None)], name="mine")
    with pytest.raises(UnsupportedError, match="answer"):
        Trial(model, stub.Processor(), unknown, metric="accuracy")
