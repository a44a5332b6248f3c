from dataclasses import replace
from math import log, sqrt

import pytest
import torch

from foveate.methods.flowcut import FlowCut
from foveate.tokens import Extra, View


def view(attention, alike, values, k: int, left: int = 0, **marks: torch.Tensor) -> View:
    extras = {
        "attention": Extra(torch.tensor(attention)),
        "value_attention": Extra(torch.tensor(alike)),
        "values": Extra(torch.tensor(values)),
    }
    return View(torch.zeros(len(values), 2), k, extras=extras, left=left, marks=marks)


def small(k: int = 2, left: int = 0, **marks) -> View:
    """Two heads, four tokens."""
    attention = [[0.4, 0.2, 0.1, 0.1], [0.2, 0.2, 0.3, 0.1]]  # mean 0.3 0.2 0.2 0.1, sum 0.8
    alike = [[0.1, 0.1, 0.1, 0.2]]  # sum 0.5
    values = [[1.0, -1.0], [2.0, 0.0], [0.5, 0.5], [-3.0, 1.0]]  # lengths 2 2 1 4
    return view(attention, alike, values, k, left, **marks)


def test_the_score_by_hand():
    """Share of attention plus share of likeness, times the sum of the value's magnitudes."""
    expected = torch.tensor([(3 / 8 + 1 / 5) * 2, (2 / 8 + 1 / 5) * 2, (2 / 8 + 1 / 5) * 1, (1 / 8 + 2 / 5) * 4])
    torch.testing.assert_close(FlowCut().score(small()), expected)
    assert FlowCut()(small()).anchor.tolist() == [0, 3]


def test_scores_accumulate():
    """Half of the past, half of the present; the first is the present alone."""
    now = FlowCut().score(small())
    torch.testing.assert_close(FlowCut().carry(small())["flow"], now)
    past = torch.tensor([0.0, 9.0, 9.0, 0.0])
    flow = FlowCut().carry(small(flow=past))["flow"]
    torch.testing.assert_close(flow, (past + now) / 2)
    assert FlowCut()(small(flow=flow)).anchor.tolist() == [1, 2], "who goes follows the past"


def test_the_number_by_hand():
    """How many go follows the present: (n - k) / sqrt(stops left) * (1 - (entropy / log n)^2)."""
    p = [3 / 8, 2 / 8, 2 / 8, 1 / 8]
    spread = -sum(x * log(x) for x in p) / log(4)
    many = replace(small(), extras=small().extras)
    assert FlowCut().number(replace(many, left=4)) == round(2 / sqrt(4) * (1 - spread**2))
    peaked = view([[0.97, 0.01, 0.01, 0.01]], [[0.25] * 4], [[1.0]] * 4, 1, 1)
    q = [0.97, 0.01, 0.01, 0.01]
    spread = -sum(x * log(x) for x in q) / log(4)
    assert FlowCut().number(peaked) == round(3 * (1 - spread**2)) == 3
    assert FlowCut().number(view([[0.25] * 4], [[0.25] * 4], [[1.0]] * 4, 1, 1)) == 0, (
        "attention on all alike drops none"
    )
    assert FlowCut().number(view([[1.0, 0, 0, 0]], [[0.25] * 4], [[1.0]] * 4, 1, 1)) == 3, "a zero adds no entropy"


def test_every_other_block():
    peaked = view([[0.97, 0.01, 0.01, 0.01]], [[0.25] * 4], [[1.0]] * 4, 1, 1)
    assert FlowCut()(peaked).m == 4 and FlowCut(every=1)(peaked).m == 1
    assert FlowCut()(replace(peaked, left=2)).m < 4
    assert list(FlowCut().stops(23)) == list(range(1, 23))
    with pytest.raises(ValueError, match="every"):
        FlowCut(every=0)
