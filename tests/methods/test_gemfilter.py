import pytest
import torch

from foveate.entries import Entries
from foveate.methods.gemfilter import GemFilter
from foveate.tokens import Extra


def entries(products: list[float], k: int) -> Entries:
    """One key head of width 1, a query of one: products are the keys."""
    keys = torch.tensor(products)[None, :, None]
    n = len(products)
    where = {
        "kind": torch.zeros(n, dtype=torch.long),
        "number": torch.arange(n),
        "left": torch.ones(n, dtype=torch.bool),
    }
    return Entries(keys, keys, **where, k=k, depth=32, extras={"query": Extra(torch.ones(1, 1, 1))})


def test_products_are_averaged_over_neighbours_and_edges_are_damped():
    score = GemFilter(kernel=3).score(entries([3, 0, 0, 6, 0], 2))
    torch.testing.assert_close(score, torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]))


def test_heads_add_up():
    """Two key heads; of four query heads the first two share the first."""
    keys = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
    query = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    one = Entries(
        keys, keys, torch.zeros(2).long(), torch.arange(2), torch.ones(2).bool(), 1, extras={"query": Extra(query)}
    )
    torch.testing.assert_close(GemFilter(kernel=1).score(one), torch.tensor([3.0, 12.0]))


def test_the_last_token_stays():
    assert GemFilter(kernel=1)(entries([5, 4, 3, 2, 1], 2)).tolist() == [0, 4]
    assert GemFilter(kernel=1)(entries([5, 4, 3, 2, 1], 5)).tolist() == [0, 1, 2, 3, 4]


def test_layer():
    assert GemFilter().layer(32) == 13
    assert GemFilter(at_layer=2).layer(4) == 2
    with pytest.raises(ValueError, match="odd"):
        GemFilter(kernel=2)
