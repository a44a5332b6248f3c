import torch

from foveate.methods.random import Random
from foveate.tokens import View


def kept(seed: int = 0, ordinal: int = 0, n: int = 40, x: float = 0.0) -> list[int]:
    return Random(seed=seed)(View(torch.full((n, 2), x), 10, ordinal=ordinal)).anchor.tolist()


def test_draw_depends_on_seed_image_and_size_only():
    assert kept() == sorted(set(kept())) == kept(x=1.0)
    assert len({tuple(draw) for draw in (kept(), kept(seed=1), kept(ordinal=1), kept(n=41))}) == 4


def test_every_token_has_the_same_chance():
    times = torch.zeros(40)
    for seed in range(400):
        times[kept(seed=seed)] += 1
    assert times.min() > 70 and times.max() < 130  # 100 expected, sigma 8.7


def test_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    kept()
    assert torch.equal(torch.rand(1), expected)
