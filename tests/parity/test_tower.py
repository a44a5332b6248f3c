"""FlowCut's authors and ours, layer by layer. See ``test_recorded.py`` for the recordings."""

from dataclasses import replace

import pytest
import torch
from recorded import CLOSE, FOLDER, load, recordings

from foveate.methods.flowcut import FlowCut
from foveate.tokens import Extra, View


@pytest.mark.parametrize("pattern", ["flowcut_*_score", "flowcut_*_enc*"])
def test_there_are_recordings(pattern):
    assert list(FOLDER.glob(f"{pattern}.npz")), f"no recordings {pattern} in {FOLDER}"


def view(attention, alike, values, k: int, left: int, marks=()) -> View:
    extras = {"attention": Extra(attention), "value_attention": Extra(alike), "values": Extra(values)}
    return View(torch.zeros(len(values), 2), k, extras=extras, left=left, marks=dict(marks))


@recordings("flowcut_*_score")
def test_score_and_number(path):
    data = load(path)
    views = [
        view(attention[None], alike[None], value, 1, 0)
        for attention, alike, value in zip(data["cls_attn"], data["semantic_attn"], data["value"], strict=True)
    ]
    for one, score in zip(views, data["score"], strict=True):
        torch.testing.assert_close(FlowCut().score(one), score, **CLOSE)
    tables = data["ratio_args_rpl_target_result_b1"], data["ratio_args_rpl_target_result_b2"]
    for alone, largest in zip(*tables, strict=True):
        left, target, _ = alone.tolist()
        numbers = [FlowCut().number(replace(one, k=target, left=left)) for one in views]
        assert numbers[0] == alone[2] and max(numbers) == largest[2], (left, target)


@recordings("flowcut_*_enc*")
def test_through_the_tower(path):
    """Counts after every layer, who is left at the end, and their running scores."""
    data = load(path)
    last, target = data["select_layer"], data["target_with_cls"] - 1
    alive = torch.arange(data["value"].shape[1] - 1)
    marks: dict[str, torch.Tensor] = {}
    method, counts = FlowCut(), data["count_after_layer"].tolist()
    assert list(method.stops(last + 1)) == list(range(1, last + 1))
    for layer in range(len(counts)):
        if layer < last and len(alive) > target:
            rows = torch.cat([alive.new_zeros(1), alive + 1])
            attention, alike = (data[n][layer][:, rows].softmax(-1)[:, 1:] for n in ("cls_logits", "semantic_logits"))
            one = view(attention, alike, data["value"][layer][alive + 1], target, last - 1 - layer, marks.items())
            marks = dict(method.carry(one))
            kept = method(replace(one, marks=marks)).anchor
            alive, marks = alive[kept], {name: mark[kept] for name, mark in marks.items()}
        assert len(alive) == counts[layer], f"after layer {layer}"
    assert alive.tolist() == data["kept_patches"].tolist()
    torch.testing.assert_close(marks["flow"], data["cumulative_scores"], **CLOSE)
