import math

import pytest
import torch

from foveate.methods.sparsevlm import SparseVLM, raters, relation, votes
from foveate.plan import Plan
from foveate.tokens import Extra, View


def view(rows: torch.Tensor, k: int, x: torch.Tensor | None = None, words: torch.Tensor | None = None, **more) -> View:
    """rows: (h, q, n); words: (q, 2) the more of the first feature, the more a word rates; all alike without."""
    n, q = rows.shape[-1], rows.shape[1]
    entered = {"first": torch.tensor([[1.0, 0.0]]), "first_text": torch.zeros(q, 2) if words is None else words}
    extras = {name: Extra(value, 0) for name, value in entered.items()} | {"text_rows": Extra(rows, 2)}
    return View(torch.zeros(n, 2) if x is None else x, k, extras=extras, **more)


def ramp(n: int) -> torch.Tensor:
    """Two heads, three words: all attend the more to a token the earlier it is."""
    return torch.arange(n, 0, -1, dtype=torch.float32).expand(2, 3, -1)


def test_every_visual_token_splits_a_vote_over_the_words():
    visual = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    vote = votes(visual, text)
    torch.testing.assert_close(vote, torch.tensor([(0.75 + 0.5) / 2, (0.25 + 0.5) / 2]))
    assert raters(vote).tolist() == [True, False]
    assert raters(torch.tensor([0.5, 0.5])).all(), "none is above the mean: all rate"


def test_only_raters_are_asked():
    """Token 3 is looked at by a word that otherwise looks at text."""
    rows = torch.tensor([[[0.3, 0.1, 0.2, 0.1], [0.0, 0.0, 0.0, 0.2]]])
    one = view(rows, 2, words=torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert SparseVLM().raters(one).tolist() == [True, False]
    torch.testing.assert_close(SparseVLM().score(one), rows[0, 0])
    torch.testing.assert_close(relation(rows, torch.tensor([True, True])), torch.tensor([0.15, 0.05, 0.1, 0.15]))
    assert SparseVLM(recycle=0)(one).anchor.tolist() == [0, 2]


def test_after_layers_2_6_and_15_of_32():
    assert list(SparseVLM().stops(32)) == [3, 7, 16]


@pytest.mark.parametrize(("out", "tokens", "clusters"), [(1, 1, 1), (28, 9, 1), (30, 10, 2), (87, 27, 3), (276, 83, 9)])
def test_tokens_and_clusters_that_are_made_of_the_rest(out, tokens, clusters):
    assert SparseVLM().recycled(out) == (tokens, clusters)


def test_the_best_of_the_rest_become_one():
    """40 tokens to 13: 12 stay, and of the 28 others the best 9 are one cluster. The last 19 are lost."""
    x = torch.arange(40, dtype=torch.float32)[:, None].expand(-1, 2)
    answer = SparseVLM()(view(ramp(40), 13, x)).check()
    assert answer.m == 13 and answer.anchor[:12].tolist() == list(range(12))
    assert answer.src[answer.dst == 12].tolist() == list(range(12, 21))
    torch.testing.assert_close(answer.apply(x)[12], torch.full((2,), 16.0))
    assert answer.anchor[12] in range(12, 21)


@pytest.mark.parametrize("recycle", [0.0, 0.3, 1.0])
def test_clusters_count_within_the_budget(recycle):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=draw)
    for k in range(1, 61):
        answer = SparseVLM(recycle=recycle)(view(ramp(60), k, x)).check()
        assert answer.m == k and 0 in answer.anchor
        assert answer.is_drop == (not recycle or k in (1, 60))


def test_the_same_share_leaves_at_each_stop():
    n, seen = 576, []
    for left in (2, 1, 0):
        n = SparseVLM()(view(ramp(n), 72, left=left, entered=576)).m
        seen.append(n)
    assert seen == [288, 144, 72]


def test_a_table_of_counts_needs_no_budget():
    method = SparseVLM(counts=(300 / 576, 200 / 576, 110 / 576))
    assert Plan.of(f"sparsevlm:counts={method.counts}").steps[0].keep is None
    for k, expected in ((576, [300, 200, 110]), (64, [300, 200, 64]), (250, [300, 251, 250])):
        n, seen = 576, []
        for left in (2, 1, 0):
            n = method(view(ramp(n), min(k, n), left=left, entered=576)).m
            seen.append(n)
        assert seen == expected
    with pytest.raises(ValueError, match="3 stops"):
        SparseVLM(counts=(0.5,))


def test_the_rank_of_the_raters_attention_may_say_how_many():
    rows = ramp(40)  # rank 1, and all words rate
    method = SparseVLM(adaptive=True)
    assert method.settled and not SparseVLM().settled
    assert method(view(rows, 40)).m == 13  # 1 * 13.5, rounded down
    assert method(view(rows[..., :10], 10)).m == 9, "one leaves at least"
    assert SparseVLM(adaptive=True, scale=2, bias=3)(view(rows, 40)).m == 5
    assert method(view(rows, 7)).m == 7, "a budget binds the last stop"
    assert method(view(rows, 20, left=1)).m == 21, "and is the least before"
