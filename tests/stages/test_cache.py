"""A cache that holds less than it counts."""

import copy

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from foveate.errors import UnsupportedError
from foveate.stages import cache as caches


def filled(tokens: int, window: int | None = None, rows: int = 1, record: bool = False):
    cache = DynamicCache()
    cache.layers = [DynamicLayer() if window is None else DynamicSlidingWindowLayer(window) for _ in range(2)]
    if record:
        cache.activate_past_recording()
    add(cache, tokens, rows)
    return cache


def add(cache, tokens: int, rows: int = 1):
    states = torch.arange(float(tokens)).view(1, 1, -1, 1).expand(rows, 1, -1, 2)
    for i in range(len(cache.layers)):
        cache.update(states, states, i)


def alive(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(rows, columns, dtype=torch.bool)


@pytest.mark.parametrize("window", [None, 50, 6])
def test_lengths_are_those_the_caller_counts(window):
    plain, ours = filled(10, window), filled(10, window)
    caches.remember(ours, 7, alive(1, 10), None, False)
    for _ in range(2):
        assert ours.get_seq_length() == plain.get_seq_length() + 7 == 7 + caches.stored_columns(ours)
        for q in (1, 4):
            for i in range(2):
                (length, offset), (same, start) = ours.get_mask_sizes(q, i), plain.get_mask_sizes(q, i)
                assert (length, offset) == (same, start + 7)
        for cache in (plain, ours):
            add(cache, 3)
        assert torch.equal(ours.layers[1].keys, plain.layers[1].keys)
    assert caches.memory_of(plain) is None
    assert type(plain.layers[0]) in (DynamicLayer, DynamicSlidingWindowLayer), "other caches keep their class"


@pytest.mark.parametrize("window", [None, 50, 6])
def test_going_back(window):
    plain, ours = filled(10, window, record=True), filled(10, window, record=True)
    caches.remember(ours, 7, alive(1, 10), None, False)
    for cache in (plain, ours):
        cache.crop(0)
        add(cache, 3)
        cache.crop(-2)
    assert ours.get_seq_length() == plain.get_seq_length() + 7 == 18
    assert torch.equal(ours.layers[0].keys, plain.layers[0].keys)
    assert caches.memory_of(ours).alive.shape == (1, 10)
    if window is None:
        ours.crop(-3)  # into the prompt
        assert caches.memory_of(ours).alive.shape == (1, 8)


def test_masks_of_later_calls():
    cache = filled(3, rows=2)
    caches.remember(cache, 2, torch.tensor([[False, True, True], [True, True, True]]), None, True)
    memory = caches.memory_of(cache)
    given = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    assert memory.mask(given, 3, 1).tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0]]
    assert memory.mask(None, 4, 1).tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    with pytest.raises(UnsupportedError, match=r"4 rows.*2"):
        memory.mask(given.repeat(2, 1), 3, 1)


def test_rows_follow_the_cache():
    cache = filled(3, rows=2)
    first = torch.tensor([[False, True, True], [True, True, True]])
    caches.remember(cache, 2, first, torch.tensor([[[4], [5]]] * 3), True)
    memory = caches.memory_of(cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(memory.alive, first.flip(0)) and memory.back[:, :, 0].tolist() == [[5, 4]] * 3
    cache.batch_repeat_interleave(2)
    assert memory.alive.shape == (4, 3) and memory.back[0, :, 0].tolist() == [5, 5, 4, 4]
    cache.batch_select_indices(torch.tensor([3]))
    assert memory.alive.tolist() == [[False, True, True]] and memory.back.shape == (3, 1, 1)
    assert cache.layers[1].keys.shape[0] == 1


def test_a_second_prompt_adds_up():
    cache = filled(3)
    caches.remember(cache, 2, alive(1, 3), torch.tensor([[4]]), False)
    add(cache, 2)
    caches.remember(cache, 5, alive(1, 5), torch.tensor([[1]]), True)
    memory = caches.memory_of(cache)
    assert (memory.removed, memory.back.item(), memory.needs_run) == (7, 5, True)
    assert cache.get_seq_length() == 12 and len(type(cache.layers[0]).__mro__) == len(DynamicLayer.__mro__) + 1


def test_without_its_run():
    for needs in (True, False):
        cache = filled(3)
        caches.remember(cache, 2, alive(1, 3), None, needs)
        if needs:
            with pytest.raises(UnsupportedError, match="attach again"):
                add(cache, 1)
            assert cache.get_seq_length() == 5, "nothing was stored"
            caches.memory_of(cache).prepared = True
        add(cache, 1)
        assert cache.get_seq_length() == 6


def test_reset_forgets():
    cache = filled(3)
    caches.remember(cache, 2, alive(1, 3), torch.tensor([[4]]), True)
    cache.reset()
    memory = caches.memory_of(cache)
    assert cache.get_seq_length() == 0 and not memory.needs_run and memory.back is None and memory.removed == 0
    add(cache, 4)
    assert cache.get_seq_length() == 4


def test_copies_are_apart():
    cache = filled(3)
    caches.remember(cache, 2, alive(1, 3), None, False)
    other = copy.deepcopy(cache)
    assert other.layers[0].memory is caches.memory_of(other) is not caches.memory_of(cache)
    caches.remember(other, 4, alive(1, 3), None, True)
    assert (cache.get_seq_length(), other.get_seq_length()) == (5, 9)
