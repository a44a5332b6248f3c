import pytest
import torch

import tiny
from foveate import compress
from foveate.entries import Entries
from foveate.errors import MethodError
from foveate.methods.lookm import LOOKM, most_alike
from foveate.tokens import Extra, Kind

TEXT, IMAGE = int(Kind.TEXT), int(Kind.CONTENT)
KIND = torch.tensor([TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT])
SCORE = torch.tensor([[1.0, 9, 8, 7, 2, 0]])
KEYS = torch.tensor([[[0.0, 2], [4, 0], [3, 4], [0, 4], [6, 0], [0, -1]]])


def entries(k: int, kind: torch.Tensor = KIND, keys: torch.Tensor = KEYS, score: torch.Tensor = SCORE) -> Entries:
    n = len(kind)
    left, extras = torch.ones(n, dtype=torch.bool), {"received": Extra(score[:, None], 0)}
    return Entries(keys, -keys, kind, torch.arange(n), left, k, extras=extras)


def answer(method: LOOKM, of: Entries):
    return method(of, method.score(of)).check()


@pytest.mark.parametrize(
    ("prior", "k", "kept"),
    [
        ("ranked", 4, [0, 1, 4, 5]),  # all text, and the best of the picture
        ("ranked", 2, [4, 5]),  # the latest, and the text that received most
        ("ranked", 1, [4]),  # a quarter is rounded to none
        ("all", 4, [0, 1, 4, 5]),
        ("all", 2, [0, 4, 5]),  # beyond the budget
        ("all", 1, [0, 4, 5]),
        ("none", 2, [0, 5]),  # the first and the latest stay
        ("none", 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_text_first(prior, k, kept):
    assert answer(LOOKM(text_prior=prior, recent=0.25 if k < 2 else 0.5 / k * 2), entries(k)).kept.tolist() == [kept]


def test_counts_are_the_budgets_unless_all_text_stays():
    assert LOOKM.card.count == LOOKM().card.count == LOOKM(text_prior="none").card.count == "fixed"
    assert LOOKM(text_prior="all").card.count == "content"


def test_query_heads_of_a_group_add_up_and_huge_scores_do_not_outrank_text():
    score = torch.tensor([[[1.0, 2.0, torch.inf], [1.0, 0.5, 1.0]]])
    of = Entries(
        KEYS[:, :3],
        KEYS[:, :3],
        KIND[:3],
        torch.arange(3),
        torch.ones(3).bool(),
        1,
        extras={"received": Extra(score, 0)},
    )
    assert LOOKM().score(of).tolist() == [[2.0, 2.5, torch.inf]]
    assert answer(LOOKM(recent=0), of).kept.tolist() == [[0]]
    with pytest.raises(MethodError, match="NaN"):
        answer(LOOKM(), entries(2, score=SCORE * torch.nan))


# Of 0 1 4 5, key 1 (4, 0) and key 4 (6, 0) point one way, so that the first is nearest; entries 2 (3, 4) and 3 (0, 4)
# leave, and are nearest to 0 (0, 2): by 0.8 and 1.
@pytest.mark.parametrize(
    ("merge", "first"),
    [
        ("pivot", [(0 + 1.5 + 0) / 3, (2 + 3 + 3) / 3]),
        ("weighted", [0.0, (2 + 4) / 2]),  # 0.8 is below the mean: lost
        ("average", [3 / 3, (2 + 4 + 4) / 3]),
        ("none", [0.0, 2.0]),
    ],
)
def test_what_leaves_is_merged_into_the_most_similar_kept_key(merge, first):
    eviction = answer(LOOKM(merge=merge), entries(4))
    keys = eviction.apply(KEYS)
    torch.testing.assert_close(keys, torch.tensor([[first, [4.0, 0.0], [6.0, 0.0], [0.0, -1.0]]]))
    torch.testing.assert_close(eviction.apply(-KEYS), -keys)


def test_weights_of_a_mean_add_up_to_one_and_those_of_cosines_do_not():
    for merge in ("pivot", "average"):
        eviction = answer(LOOKM(merge=merge), entries(4))
        fed = torch.zeros(4).scatter_add_(0, eviction.slot[0], eviction.weight[0])
        torch.testing.assert_close(fed, torch.ones(4))
    keys = torch.tensor([[[0.0, 2], [4, 0], [3, 4], [3, 4], [6, 0], [0, -1]]])
    weighted = answer(LOOKM(merge="weighted"), entries(4, keys=keys)).apply(keys)
    torch.testing.assert_close(weighted[0, 0], torch.tensor([(0 + 2 * 0.8 * 3) / 3, (2 + 2 * 0.8 * 4) / 3]))


def test_heads_merge_apart_and_ties_go_to_the_first():
    keys = torch.cat([KEYS, KEYS.flip(-1)])
    alike, target = most_alike(keys, torch.tensor([[1], [3]]), torch.tensor([[0, 4], [0, 4]]))
    torch.testing.assert_close(alike, torch.ones(2, 1))
    assert target.tolist() == [[1], [0]]
    same = torch.ones(1, 4, 2)
    assert most_alike(same, torch.tensor([[0, 3]]), torch.tensor([[1, 2]]))[1].tolist() == [[0, 0]]


def test_keys_without_direction_are_merged_all_the_same():
    for merge in ("pivot", "weighted", "average"):
        eviction = answer(LOOKM(merge=merge), entries(4, keys=torch.zeros_like(KEYS)))
        assert bool((eviction.apply(KEYS).isfinite()).all())


def test_many_entries_leave_in_parts():
    n = 3000
    keys = torch.randn(2, n, 4, generator=torch.Generator().manual_seed(0))
    gone, kept = torch.arange(100, n).expand(2, -1), torch.arange(100).expand(2, -1)
    alike, target = most_alike(keys, gone, kept)
    rows = torch.nn.functional.normalize(keys, dim=-1)
    expected = (rows[:, 100:] @ rows[:, :100].mT).max(-1)
    torch.testing.assert_close(alike, expected.values)
    assert torch.equal(target, expected.indices)


def test_a_prompt_of_two_pictures_goes_on_with_a_cache_of_the_size_asked_for():
    """The `works` sentence: text stays first, what leaves of the pictures is merged, and decoding goes on."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5, ("image", "a"), 4]])
    n = batch["input_ids"].shape[1]
    with torch.no_grad(), compress(model, "lookm:keep=24,recent=0.25") as run:
        out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        report = run.report
    text = (batch["input_ids"][0] != model.config.image_token_id).nonzero()[:, 0].tolist()
    assert len(text) <= 18 and report.cache
    for one in report.cache:
        assert len(one.number) == n and one.eviction.m == 24
        assert bool((one.eviction.slot >= 0).all())
        for kept in one.eviction.kept.tolist():
            assert set(text) <= set(kept)
    assert all(layer.keys.shape[2] == 24 + 2 for layer in out.past_key_values.layers)


def test_options():
    for wrong in ({"merge": "sum"}, {"text_prior": "some"}, {"recent": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LOOKM(**wrong)
