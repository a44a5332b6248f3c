"""Which plans and budgets a request may ask for."""

import pytest

from foveate import KeepError, Plan, PlanError
from foveate.serving.limits import RequestError
from foveate.serving.menu import Menu


@pytest.mark.parametrize(
    ("plans", "keep", "asked", "ran"),
    [
        (["divprune:keep=0.25"], None, None, "divprune:keep=25%"),
        (["divprune"], 0.25, None, "divprune:keep=25%"),
        (["divprune"], "64/image", {}, "divprune:keep=64/image"),
        (["divprune:keep=0.25"], None, {"keep": 0.1}, "divprune:keep=10%"),
        (["divprune:keep=0.25"], None, {"keep": "10%"}, "divprune:keep=10%"),
        (["divprune:keep=0.25"], None, {"keep": 0.25}, "divprune:keep=25%"),
        (["visionzip:keep=64,contextual=0.2"], None, {"keep": 32}, "visionzip:keep=32/image,contextual=0.2"),
        (["divprune:keep=0.25", "visionzip:keep=64"], None, {"plan": "visionzip:keep=64"}, "visionzip:keep=64/image"),
        (["divprune:keep=0.25", "visionzip"], 64, {"plan": "visionzip", "keep": 9}, "visionzip:keep=9/image"),
        (
            ["divprune:keep=0.5>fastv:keep=0.5"],
            None,
            {"plan": "divprune:keep=0.5 > fastv:keep=0.5"},
            str(Plan.of("divprune:keep=0.5 > fastv:keep=0.5")),
        ),
        (["divprune:keep=0.5 > fastv"], 0.25, {"keep": 0.125}, str(Plan.of("divprune:keep=0.5 > fastv", 0.125))),
    ],
)
def test_a_request_gets_the_plan_it_may_have(plans, keep, asked, ran):
    assert str(Menu(plans, keep).chosen(asked)) == ran


@pytest.mark.parametrize(
    ("cap", "asked", "words"),
    [
        (None, {"keep": 0.26}, "above this server's cap, 25%"),
        (None, {"keep": 64}, "cannot be compared"),
        ("50%", {"keep": 0.51}, "above this server's cap, 50%"),
        ("0.5,144", {"keep": 145}, "above this server's cap, 50%, 144/image"),
        ("50%", {"keep": "64/total"}, "cannot be compared"),
        (None, {"keep": 0}, "is not a budget"),
        (None, {"keep": -1}, "is not a budget"),
        (None, {"keep": 1.5}, "is not a budget"),
        (None, {"keep": "lots"}, "is not a budget"),
        (None, {"keep": True}, "is not a budget"),
        (None, {"keep": [0.1]}, "is not a budget"),
        (None, {"keeps": 0.1}, "it has keeps"),
        (None, 0.1, "it is 0.1"),
        (None, {"plan": "visionzip"}, "does not run the plan 'visionzip'"),
        (None, {"plan": 7}, "does not run the plan 7"),
        (None, {"plan": ["divprune"]}, "does not run the plan"),
    ],
)
def test_and_no_other(cap, asked, words):
    with pytest.raises(RequestError, match=words.replace("(", r"\(")):
        Menu(["divprune:keep=0.25"], cap=cap).chosen(asked)


@pytest.mark.parametrize(
    ("cap", "keep"), [("1.0", "100%"), ("100%", 0.9), ("100%", 999), ("0.5,144", 144), ("0.5,144", 0.5)]
)
def test_a_cap_lets_pass_what_it_says(cap, keep):
    Menu(["divprune:keep=0.25"], cap=cap).chosen({"keep": keep})


def test_budgets_of_a_whole_plan_stay():
    menu = Menu(["divprune:keep=0.5 > fastv:keep=0.5"])
    assert menu.to_dict()[0]["keep"] is None
    with pytest.raises(RequestError, match="budgets of its own"):
        menu.chosen({"keep": 0.1})


@pytest.mark.parametrize(
    ("plans", "keep", "cap", "error", "words"),
    [
        ([], None, None, PlanError, "needs a plan"),
        (["divprune"], None, None, PlanError, "no budget for divprune"),
        (["divprun:keep=0.5"], None, None, PlanError, "divprun"),
        (["divprun"], 0.5, None, PlanError, "divprun"),
        (["divprune:keep=0.5"], 0.25, None, PlanError, "every plan has its own"),
        (["divprune:keep=0.5", "divprune:keep=0.5"], None, None, PlanError, "named twice"),
        (["divprune:keep=0.5"], None, "25%", KeepError, "above this server's cap"),
        (["divprune:keep=64"], None, "25%", KeepError, "cannot be compared"),
        (["divprune:keep=0.5"], None, "much", KeepError, "not a budget"),
    ],
)
def test_a_menu_that_makes_no_sense_is_refused_at_start(plans, keep, cap, error, words):
    with pytest.raises(error, match=words):
        Menu(plans, keep, cap)
