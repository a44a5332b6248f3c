import pytest
import torch

from foveate.methods.composite import Composite
from foveate.tokens import View


def test_image_tokens_do_not_ask_in_the_layers_named():
    assert list(Composite().stops(4)) == [0, 1, 2, 3]
    assert list(Composite(start=1, end=3).stops(4)) == [1, 2]
    assert list(Composite(start=0.5).stops(4)) == [2, 3]
    assert Composite()(View(torch.zeros(3, 2), 3)).sees == "nothing"
    assert Composite(sees="itself")(View(torch.zeros(3, 2), 3)).sees == "itself"


def test_sees():
    with pytest.raises(ValueError, match="all"):
        Composite(sees="all")
