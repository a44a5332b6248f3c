import pytest
import torch

from foveate.parts.outliers import above_fence, local_outliers


def test_fence_by_hand():
    """Quartiles of 0, 1, 2, 3, 4 are 1 and 3: the fence is at 6."""
    assert above_fence(torch.tensor([0.0, 1, 2, 3, 4])).tolist() == [False] * 5
    assert above_fence(torch.tensor([0.0, 1, 2, 3, 6.1])).tolist() == [False] * 4 + [True]
    assert not bool(above_fence(torch.ones(4)).any())


def plainly(score: list[float], k: int) -> list[float]:
    """The factor as its authors define it, with exactly k neighbours, ties to the left."""
    span = max(score) - min(score)
    order = sorted(range(len(score)), key=lambda i: (score[i], i))
    value = [score[i] / span for i in order]
    near = {}
    for i in range(len(value)):
        window = [j for j in range(i - k, i + k + 1) if j != i and 0 <= j < len(value)]
        near[i] = sorted(window, key=lambda j: (abs(value[j] - value[i]), j))[:k]
    far = {i: abs(value[near[i][-1]] - value[i]) for i in near}
    dense = {i: 1 / (sum(max(far[j], abs(value[j] - value[i])) for j in near[i]) / k + 1e-10) for i in near}
    factor = {order[i]: sum(dense[j] for j in near[i]) / k / dense[i] for i in near}
    return [factor[i] for i in range(len(score))]


@pytest.mark.parametrize("k", [1, 3, 7])
def test_local_outliers_by_definition(k):
    score = torch.rand(25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(local_outliers(score, k), torch.tensor(plainly(score.tolist(), k), dtype=torch.float64))


def test_an_outlier_stands_out_and_copies_do_not():
    score = torch.cat([torch.linspace(0, 1, 30), torch.tensor([9.0])])
    factor = local_outliers(score, 5)
    assert int(factor.argmax()) == 30 and float(factor[-1]) > 5 and float(factor[5:25].max()) < 1.2
    assert local_outliers(torch.ones(4)).tolist() == [1] * 4
    assert local_outliers(torch.ones(1)).tolist() == [1]
    assert bool(local_outliers(torch.tensor([0.0, 0, 0, 0, 1, 2]), 2).isfinite().all())
