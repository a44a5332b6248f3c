from itertools import pairwise

import pytest
import torch

import tiny
from foveate import compress
from foveate.entries import Entries
from foveate.errors import MethodError
from foveate.methods.vlcache import VLCache
from foveate.tokens import Extra, Kind

# Two key heads of one query head; two words after a picture of three, at places 3 and 4. The first may look at 4 of 5.
ROWS = torch.tensor(
    [
        [[0.900, 0.090, 0.002, 0.008, 0.0], [0.50, 0.004, 0.004, 0.002, 0.49]],
        [[0.002, 0.500, 0.250, 0.248, 0.0], [0.10, 0.200, 0.300, 0.399, 0.001]],
    ]
)[:, None]


def entries(k: int, rows: torch.Tensor = ROWS) -> Entries:
    heads, _, _, n = rows.shape
    keys, kind = torch.zeros(heads, n, 2), torch.full((n,), int(Kind.TEXT))
    left = torch.ones(n, dtype=torch.bool)
    return Entries(keys, keys, kind, torch.arange(n), left, k, extras={"text_rows": Extra(rows, 0)})


def test_density_counts_entries_of_a_hundredth_of_the_rows_maximum_that_a_word_may_look_at():
    """At least 0.009 and 0.005 in the first head: 2 of 4 and 2 of 5; 0.005 and 0.00399 in the second: 3 of 4, 4 of 5."""
    assert VLCache().measure(entries(5)) == pytest.approx((2 + 2 + 3 + 4) / (2 * (4 + 5)))
    assert VLCache(threshold=0).measure(entries(5)) == 1
    assert VLCache(threshold=1).measure(entries(5)) == pytest.approx(4 / 18)


def test_attention_of_the_text_after_the_picture_is_added_up():
    one, each = VLCache(), VLCache(head_adaptive=True)
    torch.testing.assert_close(
        each.score(entries(2)), torch.tensor([[1.4, 0.094, 0.006, 0.01, 0.49], [0.102, 0.7, 0.55, 0.647, 0.001]])
    )
    torch.testing.assert_close(one.score(entries(2)), torch.tensor([[1.502, 0.794, 0.556, 0.657, 0.491]] * 2))
    assert one(entries(2), one.score(entries(2))).kept.tolist() == [[0, 1]] * 2
    assert each(entries(2), each.score(entries(2))).kept.tolist() == [[0, 4], [1, 3]]


def test_a_tenth_of_the_layers_budget_is_its_latest_entries():
    rows = torch.linspace(1, 0.1, 30).expand(1, 1, 1, 30)
    method = VLCache()
    assert method(entries(10, rows), method.score(entries(10, rows))).kept.tolist() == [[*range(9), 29]]
    assert method(entries(20, rows), method.score(entries(20, rows))).kept.tolist() == [[*range(18), 28, 29]]


def test_layers_share_in_proportion_to_density():
    assert VLCache().allot(100, 1000, [0.1, 0.2, 0.1]) == [75, 150, 75]
    assert VLCache(adaptive=0.0).allot(100, 1000, [0.1, 0.2, 0.1]) == [100, 100, 100]
    assert VLCache(adaptive=0.2).allot(100, 1000, [0.1, 0.2, 0.1]) == [95, 110, 95]
    assert VLCache().allot(10, 40, [0.0, 0.0]) == [10, 10]


def test_shares_are_clipped_and_the_others_make_up_for_it():
    """A hundredth of 1000 at least: 10 for the first; and no more than 1000, which leaves 90 to the last two."""
    assert VLCache().allot(275, 1000, [1e-4, 0.96, 0.04, 0.04]) == [10, 1000, 45, 45]
    assert VLCache().allot(5, 1000, [0.0, 1.0]) == [5, 5]  # least is the average where that is less
    assert VLCache().allot(80, 100, [1.0, 0.0]) == [100, 60]


@pytest.mark.parametrize("layers", [1, 2, 5, 32])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 9), (3, 7), (9, 9), (57, 600), (599, 600)])
def test_the_sum_is_the_budget(layers, k, n):
    generator = torch.Generator().manual_seed(layers)
    for power in (1, 8):
        measures = (torch.rand(layers, generator=generator) ** power).tolist()
        shares = VLCache().allot(k, n, measures)
        assert sum(shares) == k * layers and min(shares) >= 1 and max(shares) <= n
        order = sorted(range(layers), key=measures.__getitem__)
        assert all(shares[a] <= shares[b] + 1 for a, b in pairwise(order))


def test_what_is_refused():
    with pytest.raises(MethodError, match="density"):
        VLCache().allot(3, 9, [0.1, float("nan")])
    for name in ("recent", "threshold", "adaptive"):
        with pytest.raises(ValueError, match=name):
            VLCache(**{name: 1.1})


def test_layers_of_a_model_hold_unequal_caches_that_add_up():
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    n, depth = batch["input_ids"].shape[1], len(model.model.language_model.layers)
    with torch.no_grad(), compress(model, "vlcache:keep=12,threshold=0.6") as run:
        out = model.generate(**batch, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        held = [one.eviction.m for one in run.report.cache]
    assert sum(held) == 12 * depth and len(set(held)) > 1 and max(held) <= n
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [each + 1 for each in held]
