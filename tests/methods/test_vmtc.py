import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.vmtc import VMTC
from foveate.tokens import Extra, View

X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0], [4.0, 0.1], [0.1, 6.0], [0.0, 4.0]])
ATTENTION = torch.tensor([[0.10, 0.05, 0.50, 0.20, 0.05, 0.10], [0.10, 0.05, 0.50, 0.20, 0.05, 0.10]])


def view(k: int, attention: torch.Tensor = ATTENTION) -> View:
    return View(X, k, extras={"attention": Extra(attention)})


def test_primary_and_clusters():
    """2 is primary. By direction 0 and 3 are one kind, 1, 4 and 5 the other; attention weighs their means."""
    reduction = VMTC(primary=1 / 3)(view(3))
    out = dict(zip(reduction.anchor.tolist(), reduction.apply(X), strict=True))
    assert out[2].tolist() == [9, 9]
    near = (set(out) - {2}) & {0, 3}
    far = (set(out) - {2}) & {1, 4, 5}
    assert len(near) == len(far) == 1
    torch.testing.assert_close(out[near.pop()], (0.1 * X[0] + 0.2 * X[3]) / 0.3)
    torch.testing.assert_close(out[far.pop()], (0.05 * X[1] + 0.05 * X[4] + 0.1 * X[5]) / 0.2)


def test_length_does_not_matter_but_direction():
    """Scaling rows moves none of them to another cluster."""
    scale = torch.tensor([5.0, 0.1, 1.0, 0.2, 30.0, 1.0])[:, None]
    scaled = VMTC(primary=1 / 3)(View(X * scale, 3, extras={"attention": Extra(ATTENTION)}))
    for reduction in (scaled, VMTC(primary=1 / 3)(view(3))):
        together = reduction.dst[:, None] == reduction.dst
        kind = torch.tensor([0, 1, 2, 0, 1, 1])
        assert torch.equal(together, kind[:, None] == kind)


def test_no_attention_in_a_cluster_is_a_plain_mean():
    attention = torch.tensor([[0.0, 0.0, 0.7, 0.3, 0.0, 0.0]])
    reduction = VMTC(primary=1 / 3)(view(3, attention))
    rows = reduction.apply(X)[reduction.anchor != 2]
    expected = torch.stack([X[3], X[[1, 4, 5]].mean(0)])  # 0 has no weight beside 3
    torch.testing.assert_close(rows[rows[:, 0].argsort(descending=True)], expected)


@pytest.mark.parametrize(("k", "few"), [(1, 0), (2, 1), (4, 3), (6, 5)])
def test_share_of_the_budget(k, few):
    reduction = VMTC()(view(k))
    assert reduction.m == k
    kept = ATTENTION[0].sort(descending=True, stable=True).indices[:few]
    assert torch.isin(kept, reduction.anchor).all()
    assert torch.equal(reduction.apply(X)[torch.isin(reduction.anchor, kept)], X[kept.sort().values])


def test_all_primary():
    reduction = VMTC(primary=1.0)(view(2))
    assert reduction.is_drop and reduction.anchor.tolist() == [2, 3]


@pytest.mark.parametrize("fault", ["primary=1.5", "primary=-0.5", "rounds=-1"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"vmtc:keep=64,{fault}")
