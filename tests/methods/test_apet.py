import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.apet import ApET
from foveate.tokens import View

# A plane that tokens 0 and 1 span; 4 and 5 stick out of it, 2 and 3 do not.
X = torch.tensor([[9.0, 0, 0], [0, 9, 0], [3, 4, 0], [2, 1, 0], [4, 1, 2], [1, 2, 5]])
BASIS = torch.tensor([0, 1])


def test_errors_are_distances_to_what_the_basis_makes():
    """The plane holds all but the third coordinate."""
    torch.testing.assert_close(ApET.errors(X, BASIS), torch.tensor([0.0, 0, 0, 0, 2, 5]), rtol=1e-4, atol=1e-4)


def test_basis_and_largest_errors_stay():
    """5 stays for its error. 2, 3 and 4 are averaged into it, the only one that takes in others."""
    reduction = ApET(basis=2).around(View(X, 3), BASIS)
    assert reduction.anchor.tolist() == [0, 1, 5]
    torch.testing.assert_close(reduction.apply(X)[2], X[2:].mean(0))
    assert torch.equal(reduction.apply(X)[:2], X[:2])


def test_the_most_similar_takes_in():
    """Of 4 and 5, 2 and 3 are more like 4: cosines 16 and 9 over 4.58 against 11 and 4 over 5.48."""
    reduction = ApET(basis=2).around(View(X, 4), BASIS)
    assert reduction.anchor.tolist() == [0, 1, 4, 5]
    torch.testing.assert_close(reduction.apply(X)[2], X[[2, 3, 4]].mean(0))
    assert torch.equal(reduction.apply(X)[3], X[5])


def test_overwriting():
    """Errors fall from 5 to 4 to the others, all about 0: the basis takes the place of the second and third kept token,

    so that 4 is lost; and 0 and 1 are averaged into 5 besides.
    """
    x = X + torch.tensor([0.0, 0, 1e-3]) * torch.arange(6)[:, None]
    reduction = ApET(basis=2, overwrite=True).around(View(x, 3), BASIS)
    assert {4, 5} < set(reduction.anchor.tolist())
    out = reduction.apply(x)
    assert torch.equal(out[reduction.anchor < 5], x[:2])
    assert 4 not in reduction.src.tolist() and reduction.src.tolist().count(0) == 2


def test_the_basis_is_far_apart():
    """Farthest from the mean first, and never all of the budget."""
    x = torch.tensor([[0.0, 0], [1, 0], [2, 0], [50, 0], [52, 0]])
    assert ApET(basis=2).chosen(View(x, 4)).tolist() == [4, 0]
    assert [len(ApET(basis=10).chosen(View(x, k))) for k in (1, 2, 5)] == [0, 1, 4]


def test_every_error_can_be_read():
    """A chosen number of basis tokens; the first that the basis cannot explain stays."""
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    method, view = ApET(basis=4), View(x, 10)
    basis = method.chosen(view)
    errors = method.errors(x, basis)
    assert len(basis) == 4 and errors.shape == (40,) and float(errors[basis].max()) < 1e-3
    assert set(errors.sort(descending=True).indices[:6].tolist()) <= set(method(view).anchor.tolist())


def test_basis_is_checked():
    with pytest.raises(PlanError, match="basis"):
        Plan.of("apet:keep=64,basis=0")
