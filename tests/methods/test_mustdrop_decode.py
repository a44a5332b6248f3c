import pytest
import torch

import tiny
from foveate import Plan, compress
from foveate.entries import Entries
from foveate.methods.mustdrop_decode import MustDropDecode
from foveate.tokens import Kind

TEXT, IMAGE = int(Kind.TEXT), int(Kind.CONTENT)


def kept(number: list[int], left: list[int], earlier: bool = False) -> list[int]:
    """Of a prompt whose columns 1 to 4 are a picture's."""
    kind = torch.tensor([IMAGE if 1 <= i <= 4 else TEXT for i in number])
    keys = torch.zeros(2, len(number), 3)
    runs = torch.tensor([i in left or not 1 <= i <= 4 for i in number])
    entries = Entries(keys, keys, kind, torch.tensor(number), runs, len(number))
    answer = MustDropDecode(earlier)(entries).check()
    assert torch.equal(answer.kept[0], answer.kept[1])
    return [number[i] for i in answer.kept[0].tolist()]


def test_filtered_layers_are_cut_to_what_is_left_in_the_end():
    assert kept([0, 1, 3, 4, 5], [3]) == [0, 3, 5]
    assert kept([0, 3, 5], [3]) == [0, 3, 5]
    assert kept([0, 2, 5], []) == [0, 5]


def test_layers_before_the_first_filter_hold_all_unless_asked():
    assert kept([0, 1, 2, 3, 4, 5], [3]) == [0, 1, 2, 3, 4, 5]
    assert kept([0, 1, 2, 3, 4, 5], [3], earlier=True) == [0, 3, 5]


def test_text_stays_and_something_does():
    assert kept([1, 3], []) == [1, 3]  # nothing else is there
    assert kept([0, 5], []) == [0, 5]


def test_it_needs_no_budget():
    (step,) = Plan.of("mustdrop_decode").steps
    assert step.keep is None and step.stage == "cache"
    assert list(MustDropDecode().allot(3, 9, [0.0, 0.0])) == [9, 9]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("keep", ["", "keep=0.25,"])
def test_caches_of_filtered_layers_shrink_to_the_survivors(keep, earlier):
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    n, depth = batch["input_ids"].shape[1], len(model.model.language_model.layers)
    text = int((batch["input_ids"] != model.config.image_token_id).sum())
    plan = f"mustdrop_filter:keep=5,layers=(1,2,3) > mustdrop_decode:{keep}earlier={earlier}"
    with torch.no_grad():
        with compress(model, "mustdrop_filter:keep=5,layers=(1,2,3)"):
            before = model(**batch)
        with compress(model, plan) as run:
            after = model(**batch)
            (image,) = run.report.images
    torch.testing.assert_close(after.logits, before.logits)
    held = [layer.keys.shape[2] for layer in before.past_key_values.layers]
    assert held[0] == n and held == sorted(held, reverse=True) and held[-1] == text + 5 < held[1]
    now = [layer.keys.shape[2] for layer in after.past_key_values.layers]
    assert now == [text + 5 if earlier else n] + [text + 5] * (depth - 1)
    stays = set(image.survivors.tolist())
    for one in run.report.cache:
        if one.layer or earlier:
            columns = set(one.number[one.eviction.kept[0]].tolist())
            pictures = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
            assert {i for i, column in enumerate(pictures.tolist()) if column in columns} == stays
