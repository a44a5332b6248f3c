import pytest
import torch

from foveate.errors import MethodError
from foveate.parts.score import known, minmax, relevance
from foveate.tokens import Extra, View

X = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def test_relevance_is_the_mean_cosine_with_the_words():
    words = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 9.0]])
    found = relevance(View(X, 1, extras={"question": Extra(words)}))
    torch.testing.assert_close(found, torch.tensor([1 / 3, 2 / 3, 0.0]))


def test_an_outside_encoder_comes_first():
    given = torch.tensor([0.1, 0.3, 0.2])
    extras = {"question": Extra(torch.ones(1, 2)), "relevance": Extra(given)}
    assert relevance(View(X, 1, extras=extras)).tolist() == given.tolist()
    view = View(X, 1, extras={"relevance": Extra(given.bfloat16())})
    assert relevance(view).dtype == torch.float32
    assert view.take(torch.tensor([1])).extras["relevance"].value.shape == (1,)


def test_no_words_and_no_numbers():
    assert relevance(View(X, 1, extras={"question": Extra(torch.zeros(0, 2))})).tolist() == [0, 0, 0]
    with pytest.raises(MethodError, match="needs"):
        relevance(View(X, 1))
    with pytest.raises(MethodError, match="1 of 2 scores are NaN or infinite"):
        known(torch.tensor([1.0, torch.inf]))


def test_minmax():
    torch.testing.assert_close(minmax(torch.tensor([1.0, 3.0, 2.0]), 0.0), torch.tensor([0.0, 1.0, 0.5]))
    assert minmax(torch.ones(3)).tolist() == [0, 0, 0]
    assert float(minmax(torch.tensor([0.0, 1e-6])).max()) == pytest.approx(0.5)
