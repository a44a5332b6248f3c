"""What choosing costs: the picture that methods get, and what is counted."""

import json

import pytest
import torch

from foveate import registry
from foveate.bench.table import replaced
from foveate.bench.times.select import END, START, markdown, measure_select, peak, picture, prefill_flops, steps
from foveate.errors import UnsupportedError
from foveate.method import BEFORE, BETWEEN, CacheMethod, Recipe, RerunMethod


def test_the_picture_has_whatever_a_card_can_name():
    view = picture(1152, 100, 32)
    assert {*BEFORE, *BETWEEN, "boxes"} == set(view.extras) and view.k == 100
    assert torch.bincount(view.tile).tolist() == [576, 576] and len(view.extras["boxes"].value) == 2
    assert "boxes" not in picture(576, 1, 8).extras
    with pytest.raises(UnsupportedError, match="100 tokens"):
        picture(100, 1, 8)


def test_every_method_is_a_row():
    ticks = []
    threads = torch.get_num_threads()
    result = measure_select(sizes=(576,), d=16, repeats=1, tick=lambda: ticks.append(1))
    assert torch.get_num_threads() == threads and result["environment"]["threads"] == 1
    assert len(ticks) == steps(None, (576,), 1)
    rows = {row["method"]: row for row in json.loads(json.dumps(result))["rows"]}
    assert set(rows) == set(registry.classes())
    for name, row in rows.items():
        cls = registry.get(name)
        if cls.card.stages[0] == "input":
            assert "pixels" in row["refused"]
        elif issubclass(cls, (Recipe, CacheMethod, RerunMethod)):
            assert row["refused"]
        else:
            assert row["ms"] > 0 and row["products"] > 0 and row["share_of_7b_prefill"] > 0 and row["peak_bytes"] >= 0
            assert row["products"] == pytest.approx(row["ms"] / row["product_ms"], rel=1e-6), "one round"
    text = markdown(result)
    assert all(f"| {name} |" in text or f"`{name}`" in text for name in rows)
    page = replaced(f"a\n{START}\n{END}\nb", text, START, END)
    assert page.startswith(f"a\n{START}\nRandom") and page.endswith(f"{END}\nb")


def test_peak_counts_what_is_alive_between_operations():
    x = torch.zeros(1000, 10)
    x.amax()  # so that nothing is set up inside

    def work():
        y = x + 1  # 40,000 bytes
        z = y * 2  # as many more
        del y
        return (z.view(-1) + x.view(-1)).sum()  # views are nothing new: at most two at a time, and the sum

    assert 80_000 <= peak(work) <= 80_100
    assert peak(lambda: x.view(-1)[:10]) == 0


def test_flops_of_a_prefill_by_hand():
    """One token: 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 multiplications, and two products of 4096 of attention."""
    assert prefill_flops(1) == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
