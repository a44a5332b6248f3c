import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.parts.merge import bipartite, nearest


def test_nearest_target_and_ties_to_the_first():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [1.0, 1.0], [0.0, 0.0]])
    place, cosine = nearest(rows, torch.tensor([0, 1]))
    assert place.tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(cosine[:2], torch.ones(2))


@given(st.integers(1, 20), st.integers(0, 25), st.integers(0, 3), st.integers(0, 3))
def test_bipartite(n, r, protected, seed):
    draw = torch.Generator().manual_seed(seed)
    x, size = torch.randn(n, 4, generator=draw), torch.rand(n, generator=draw) + 0.1
    protected = min(protected, n)
    reduction = bipartite(x, r, size, protected).check()
    assert reduction.m == n - min(r, (n - protected) // 2)
    assert bool((reduction.anchor[1:] > reduction.anchor[:-1]).all())
    assert reduction.anchor[:protected].tolist() == list(range(protected))
    mass = reduction.sizes(size)
    torch.testing.assert_close(mass @ reduction.apply(x), size @ x)
    once = reduction.then(bipartite(reduction.apply(x), 1, mass))
    torch.testing.assert_close(once.sizes(size) @ once.apply(x), size @ x)
