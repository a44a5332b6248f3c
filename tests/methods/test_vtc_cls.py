import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.fastervlm import FasterVLM
from foveate.methods.vtc_cls import VTCCLS
from foveate.tokens import Extra, View

EARLY = torch.tensor([[0.5, 0.1, 0.2, 0.2], [0.3, 0.1, 0.2, 0.4]])  # mean 0.4, 0.1, 0.2, 0.3
LATE = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.1, 0.4, 0.3, 0.2]])


def view(k: int) -> View:
    return View(torch.zeros(4, 1), k, extras={"early": Extra(EARLY), "attention": Extra(LATE)})


def test_sum_over_layers_of_the_mean_over_heads():
    torch.testing.assert_close(VTCCLS().score(view(1)), torch.tensor([0.5, 0.5, 0.5, 0.5]))
    assert VTCCLS()(view(2)).anchor.tolist() == [0, 1]


@pytest.mark.parametrize(("layers", "kept"), [("early", [0, 3]), ("late", [1, 2])])
def test_a_single_layer_is_plain_attention(layers, kept):
    """With one layer the kept tokens are those of the CLS attention of that layer."""
    rows = {"early": EARLY, "late": LATE}[layers]
    plain = FasterVLM()(View(torch.zeros(4, 1), 2, extras={"attention": Extra(rows)}))
    assert VTCCLS(layers=layers)(view(2)).anchor.tolist() == plain.anchor.tolist() == kept


@pytest.mark.parametrize("option", ["early=1", "early=-0.1", "layers=first"])
def test_options_are_checked(option):
    with pytest.raises(PlanError, match=option.split("=")[0]):
        Plan.of(f"vtc_cls:keep=2,{option}")
