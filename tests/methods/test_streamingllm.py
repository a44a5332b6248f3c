import pytest
import torch

from foveate.entries import Entries
from foveate.methods.streamingllm import StreamingLLM
from foveate.tokens import Kind


def kept(k: int, sinks: int = 4) -> list:
    keys, kind = torch.zeros(2, 10, 3), torch.full((10,), int(Kind.TEXT))
    entries = Entries(keys, keys, kind, torch.arange(10), torch.ones(10, dtype=torch.bool), k)
    return StreamingLLM(sinks)(entries).kept.tolist()


def test_the_first_four_and_the_latest():
    assert kept(6) == [[0, 1, 2, 3, 8, 9]] * 2
    assert kept(6, sinks=1) == [[0, 5, 6, 7, 8, 9]] * 2
    assert kept(3, sinks=0) == [[7, 8, 9]] * 2
    assert kept(10) == [list(range(10))] * 2


@pytest.mark.parametrize("k", [1, 4])
def test_a_budget_within_the_sinks_keeps_the_first(k):
    assert kept(k) == [list(range(k))] * 2


def test_while_decoding_the_oldest_after_the_sinks_goes():
    alive = torch.tensor([[True] * 7, [False] * 3 + [True] * 4])
    assert StreamingLLM(2).oldest(None, alive).tolist() == [[2], [5]]
    assert StreamingLLM(0).oldest(None, alive).tolist() == [[0], [3]]
    assert StreamingLLM(9).oldest(None, alive).tolist() == [[5], [5]]  # the new one stays


def test_options():
    assert StreamingLLM().evicts and not StreamingLLM(decoding=False).evicts
    with pytest.raises(ValueError, match="sinks"):
        StreamingLLM(-1)
