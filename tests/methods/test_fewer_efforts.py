import pytest
import torch

from foveate.methods.fewer_efforts import FewerEfforts
from foveate.plan import Plan
from foveate.routes import Work
from foveate.tokens import Reduction, View


def view(layer: int = 0, depth: int = 8) -> View:
    """3 x 4 tokens."""
    return View.on_grid(torch.zeros(12, 2), 12, 3, 4, layer=layer, depth=depth)


def test_a_square_around_each_token():
    work = FewerEfforts(window=3)(view())
    assert isinstance(work, Work) and isinstance(work.sees, torch.Tensor)
    seen = [sorted(t for t in row if t >= 0) for row in work.sees.tolist()]
    assert seen[0] == [0, 1, 4, 5], "a corner"
    assert seen[5] == [0, 1, 2, 4, 5, 6, 8, 9, 10], "what comes later, too"
    assert work.heads is None and work.feeds


def test_each_of_the_three_alone_and_all_together():
    assert FewerEfforts(window=0)(view()) == Work()
    heads = FewerEfforts(window=0, heads=((0, 2), ()))
    assert heads(view(0)).heads.tolist() == [0, 2]
    assert heads(view(1)).heads.tolist() == [], "no head looks"
    assert heads(view(2)).heads is None, "all do"
    late = FewerEfforts(exit=0.5)
    assert list(late.stops(8)) == [0, 1, 2, 3, 4]
    assert isinstance(late(view(3)), Work)
    gone = late(view(4))
    assert isinstance(gone, Reduction) and gone.m == 0


def test_heads_travel_as_text():
    plan = Plan.of("fewer_efforts:window=0,heads=((0,2),(1,))")
    assert plan.steps[0].method.heads == ((0, 2), (1,))
    assert Plan.of(str(plan)) == plan == Plan.of(plan.to_dict())
    with pytest.raises(ValueError, match="odd"):
        FewerEfforts(window=4)
