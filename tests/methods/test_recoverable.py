import pytest
import torch

from foveate import Plan
from foveate.errors import PlanError
from foveate.methods.recoverable import Recoverable
from foveate.tokens import Extra, View

N = 12
X = torch.arange(N, dtype=torch.float32)[:, None]
SEEN = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2])  # 3 stands out
ASKED = torch.tensor([0.3, 0.2, 0.1, 0.0, 0.3, 0.2, 0.1, 0.9, 0.2, 0.1, 0.3, 0.2])  # 7 stands out


def view(k: int) -> View:
    return View(X, k, extras={"attention": Extra(SEEN[None]), "relevance": Extra(ASKED)})


def test_kept_recovered_merged():
    """What stands out by sight, what does so by the question, and one cluster of the other ten."""
    method = Recoverable(adaptive=True, filter="iqr")
    kept, recovered, centre, cluster = method.split(view(N))
    assert (kept.tolist(), recovered.tolist()) == ([3], [7])
    assert len(centre) == 1 and cluster.tolist() == [-1 if i in (3, 7) else 0 for i in range(N)]
    reduction = method(view(N))
    assert reduction.m == 3
    out = dict(zip(reduction.anchor.tolist(), reduction.apply(X)[:, 0].tolist(), strict=True))
    assert out[3] == 3 and out[7] == 7 and out[int(centre)] == pytest.approx((66 - 10) / 10)


@pytest.mark.parametrize("filter", ["lof", "iqr"])
@pytest.mark.parametrize("k", range(1, N + 1))
def test_the_three_add_up(filter, k):
    method = Recoverable(filter=filter)
    kept, recovered, centre, cluster = method.split(view(k))
    merged = int((cluster >= 0).sum())
    assert len(kept) + len(recovered) + merged == N
    assert len(kept) + len(recovered) + len(centre) == k
    assert len(centre) >= 1 and (k < 2 or len(kept)) and (k < 3 or len(recovered))
    assert sorted({*kept.tolist(), *recovered.tolist(), *(cluster >= 0).nonzero()[:, 0].tolist()}) == list(range(N))


def test_proportions_of_the_budget():
    """One of each stands out or is merged; a budget of six is two of each: the next best by sight, and by the question."""
    kept, recovered, centre, _ = Recoverable(filter="iqr").split(view(6))
    assert (kept.tolist(), recovered.tolist(), len(centre)) == ([2, 3], [0, 7], 2)


def test_outliers_bound_by_the_budget():
    method = Recoverable(adaptive=True)
    assert method.card.count == "content" and Recoverable().card.count == "fixed"
    assert all(method(view(k)).m <= k for k in range(1, N + 1))


def test_local_outliers():
    """Far above and far below a dense crowd: only what is above the median counts."""
    crowd = torch.linspace(0.1, 0.3, 60)
    assert Recoverable().standing_out(torch.cat([crowd, torch.tensor([0.9, -0.5])])) == 1
    assert Recoverable().standing_out(torch.ones(5)) == 0


@pytest.mark.parametrize("fault", ["filter=best", "clusters=0.0"])
def test_options_are_checked(fault):
    with pytest.raises(PlanError, match=fault.split("=")[0]):
        Plan.of(f"recoverable:keep=64,{fault}")
