"""Cases small enough to be checked by hand."""

import torch

from foveate.stages.follow import IGNORED, Cut, recount, shorten, token_types

IDS = torch.tensor([[0, 0, 5, 9, 9, 6, 7], [5, 9, 9, 9, 6, 9, 7]])  # 9: image tokens, 0: padding
KEEP = torch.tensor([[0, 0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1]]).bool()
VALID = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()


def test_keeping_left_and_right():
    cut = Cut.keeping(KEEP, [4, 4])
    assert cut.index.tolist() == [[2, 4, 5, 6], [0, 2, 4, 6]]
    assert cut.all_alive and cut.alive.all() and cut.removed == 3
    fewer = KEEP.clone()
    fewer[1, 0] = False
    left, right = Cut.keeping(fewer, [4, 3]), Cut.keeping(fewer, [4, 3], right=True)
    assert left.alive.tolist()[1] == [False, True, True, True] and left.index[1, 1:].tolist() == [2, 4, 6]
    assert right.alive.tolist()[1] == [True, True, True, False] and right.index[1, :3].tolist() == [2, 4, 6]
    assert not left.all_alive


def test_nothing_keeps_padding():
    cut = Cut.nothing(VALID, False)
    assert cut.removed == 0 and torch.equal(cut.take(IDS), IDS) and torch.equal(cut.alive, VALID)


def test_everything_aligned_follows():
    cut = Cut.keeping(KEEP, [4, 4])
    labels = torch.arange(14).view(2, 7)
    three = torch.stack([labels, labels + 100, labels + 200])
    kwargs = {"input_ids": IDS, "labels": labels, "token_type_ids": (IDS == 9).long(), "other": "as it was"}
    before = {k: v.clone() for k, v in kwargs.items() if k != "other"}
    new = shorten(kwargs, cut, VALID & ~KEEP, three, 0)
    assert new["input_ids"].tolist() == [[5, 9, 6, 7], [5, 9, 6, 7]]
    assert new["position_ids"].shape == (3, 2, 4)
    assert new["position_ids"][2].tolist() == [[202, 204, 205, 206], [207, 209, 211, 213]]
    assert new["token_type_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]
    # a label stays if the column before it does
    assert new["labels"].tolist() == [[2, IGNORED, 5, 6], [7, IGNORED, IGNORED, IGNORED]]
    assert new["other"] == "as it was" and "attention_mask" not in new
    assert all(torch.equal(kwargs[k], v) for k, v in before.items()), "the caller's tensors are the caller's"


def test_one_row_of_positions_serves_all():
    cut = Cut.keeping(KEEP, [4, 4])
    assert cut.take(torch.arange(7)[None]).tolist() == [[2, 4, 5, 6], [0, 2, 4, 6]]


def test_dead_slots_are_padding_without_labels():
    keep = KEEP.clone()
    keep[0, 2] = False
    cut = Cut.keeping(keep, [3, 4])
    new = shorten({"input_ids": IDS, "labels": IDS}, cut, VALID & ~keep, torch.zeros_like(IDS), 1)
    assert new["input_ids"][0].tolist() == [1, 9, 6, 7]
    assert new["labels"][0].tolist() == [IGNORED, IGNORED, 6, 7]


def test_token_types_of_a_conversation_and_of_a_draft():
    whole = token_types({"input_ids": IDS, "mm_token_type_ids": torch.arange(20).view(2, 10)})["mm_token_type_ids"]
    assert whole[0].tolist() == [[0, 1, 2], [10, 11, 12]] and whole[1].tolist()[0] == [3, 4, 5, 6, 7, 8, 9]
    draft = token_types({"input_ids": IDS, "token_type_ids": torch.ones(2, 5).long()})["token_type_ids"]
    assert draft[0].shape == (2, 0) and draft[1].tolist()[0] == [1, 1, 1, 1, 1, 0, 0]


def test_recount_moves_later_tokens_back():
    positions = torch.tensor([[7, 3, 4, 8], [2, 5, 5, 9]])
    alive = torch.tensor([[False, True, True, True], [True, True, True, True]])
    new, back = recount(positions, alive)
    assert new.tolist() == [[0, 3, 4, 5], [2, 3, 4, 5]]
    assert back.tolist() == [[3], [4]], "9 comes after 8, and 6 after 5"
    axes, moved = recount(positions.expand(3, -1, -1), alive)
    assert torch.equal(axes[1], new) and moved.shape == (3, 2, 1)
