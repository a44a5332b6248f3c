"""What every method promises, whatever its idea. Driven by the registry: a new file or plug-in is tested by itself."""

from dataclasses import fields

import pytest
import torch
import views

from foveate import registry
from foveate.budget import Budget
from foveate.errors import MethodError
from foveate.method import CacheMethod, LayerMethod, Method, RerunMethod, WorkMethod
from foveate.plan import Plan
from foveate.routes import Route
from foveate.tokens import Reduction, View

METHODS = {
    name: cls
    for name, cls in registry.classes().items()
    # Those see entries, or answer what a layer does: test_cache.py, test_rerun.py, test_work.py.
    if issubclass(cls, Method) and not issubclass(cls, (CacheMethod, RerunMethod, WorkMethod))
}
every_method = pytest.mark.parametrize("name", METHODS)


def cases(name: str) -> list[tuple[str, int]]:
    """(shape, k) for every shape the method meets and the budgets where counts go wrong."""
    found = []
    for shape in views.shapes(METHODS[name]):
        n = views.size(shape)
        found += [(shape, k) for k in sorted({1, 2, max(1, n // 9), n // 3, n - 1, n})]
    return found


every_case = pytest.mark.parametrize(
    ("name", "shape", "k"), [(name, *case) for name in METHODS for case in cases(name)]
)


def run(name: str, view: View) -> Reduction:
    """The method's answer, checked as the stages check it."""
    answer = plain(METHODS[name]()(view), view)
    assert isinstance(answer, Reduction) and answer.n == view.n
    answer.check(empty=issubclass(METHODS[name], LayerMethod))
    counted(name, view, answer)
    return answer


def plain(answer: Reduction | Route | None, view: View) -> Reduction:
    """As a reduction; one between the layers may say that nothing changes, or that some tokens wait."""
    if answer is None:
        return Reduction.identity(view.n)
    return Reduction.drop(answer.check().running, view.n) if isinstance(answer, Route) else answer


def counted(name: str, view: View, answer: Reduction) -> None:
    card, count = METHODS[name].card, METHODS[name].card.count
    if count == "fixed" and card.budget == "left":
        assert answer.m == view.k
    elif issubclass(METHODS[name], LayerMethod):  # the picture may leave
        assert 0 <= answer.m <= view.n
    elif count == "grid":
        assert 0 < answer.m <= view.k
    else:
        assert 0 < answer.m <= view.n


def same(a: Reduction, b: Reduction) -> bool:
    """Equal to the last bit."""
    tensors = [(r.src, r.dst, r.anchor, r.weight, r.inserted) for r in (a, b)]
    return a.n == b.n and all(
        p is q if p is None or q is None else torch.equal(p, q) for p, q in zip(*tensors, strict=True)
    )


def anchors_ascend(answer: Reduction) -> None:
    assert bool((answer.anchor[1:] > answer.anchor[:-1]).all()), "anchors are distinct and in order"


@every_case
def test_counts_and_order(name, shape, k):
    view = views.view(shape, k)
    answer = run(name, view)
    anchors_ascend(answer)
    out = answer.apply(view.x)
    assert out.shape == (answer.m, views.WIDTH) and bool(out.isfinite().all())
    assert bool((answer.sizes(view.size) > 0).all())
    if k == view.n and METHODS[name].card.count == "fixed" and METHODS[name].card.budget == "left":
        assert answer.anchor.tolist() == list(range(view.n)), "all tokens are all tokens"


@every_case
def test_deterministic_and_inputs_unchanged(name, shape, k):
    view = views.view(shape, k)
    first = run(name, view)
    for fact, before in views.facts(views.view(shape, k)).items():
        assert torch.equal(views.facts(view)[fact], before), f"{name} wrote into {fact}"
    assert same(first, run(name, view)), "the same view twice"
    assert same(first, run(name, views.view(shape, k))), "an equal view"


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_dtypes(name, dtype):
    for shape in views.shapes(METHODS[name]):
        wide, narrow = views.view(shape), views.view(shape, dtype=dtype)
        answer = run(name, narrow)
        assert METHODS[name].card.count == "content" or answer.m == run(name, wide).m
        assert answer.apply(narrow.x).dtype == dtype
        assert answer.apply(wide.x).dtype == torch.float32


def duplicated(x: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Three different rows (or columns), over and over."""
    return x.index_select(axis, torch.arange(x.shape[axis]) % min(3, x.shape[axis]))


def blanked(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:: 2 if len(x) > 1 else 1] = 0
    return x


HARD = {
    "duplicates": lambda view: views.over(
        view,
        x=duplicated(view.x),
        keys=duplicated(view.extras["keys"].value),
        attention=duplicated(view.extras["attention"].value, 1),
    ),
    "zero rows": lambda view: views.over(view, x=blanked(view.x), keys=blanked(view.extras["keys"].value)),
    "ties": lambda view: views.over(view, attention=torch.full_like(view.extras["attention"].value, 1 / view.n)),
    "constant": lambda view: views.over(
        view, **{name: torch.ones_like(value) for name, value in views.inputs(view).items()}
    ),
    "all zero": lambda view: views.over(
        view, **{name: torch.zeros_like(value) for name, value in views.inputs(view).items()}
    ),
    "opposites": lambda view: views.over(view, x=torch.cat([view.x[: view.n // 2], -view.x])[: view.n]),
    "huge": lambda view: views.over(view, x=view.x * 1e15, keys=view.extras["keys"].value * 1e15),
    "tiny": lambda view: views.over(view, x=view.x * 1e-15, keys=view.extras["keys"].value * 1e-15),
}


@every_method
@pytest.mark.parametrize("kind", HARD)
def test_hard_values(name, kind):
    for shape in views.shapes(METHODS[name]):
        n = views.size(shape)
        for k in sorted({1, n // 3, n - 1, n}):
            view = HARD[kind](views.view(shape, k))
            answer = run(name, view)
            anchors_ascend(answer)
            assert bool(answer.apply(view.x).isfinite().all())
            assert same(answer, run(name, HARD[kind](views.view(shape, k))))


@every_method
def test_one_token(name):
    one = views.view("square").take(torch.tensor([0]))
    assert one.k == 1
    answer = run(name, one)
    assert answer.anchor.tolist() in ([[0], []] if issubclass(METHODS[name], LayerMethod) else [[0]])


@every_method
@pytest.mark.parametrize("keep", [10**6, "999/image", "99999/total"])
def test_more_than_there_are(name, keep):
    n = views.size("square")
    (k,) = Budget.parse(keep).counts([n])
    assert k == n
    run(name, views.view("square", k))


@every_method
@pytest.mark.parametrize("value", ["x", *views.NEEDS])
def test_nan_is_refused_where_it_is_looked_at(name, value):
    """NaN either raises, or changes nothing: then the method does not look there."""
    for k in (2, views.size("square") // 2):
        clean = views.view("square", k)
        expected = run(name, clean)
        for broken in (clean.x.new_full((), torch.nan), None):
            poisoned = views.inputs(clean)[value].clone()
            if broken is None:
                poisoned.fill_(torch.nan)
            else:
                poisoned.flatten()[poisoned.numel() // 2] = broken
            try:
                answer = plain(METHODS[name]()(views.over(clean, **{value: poisoned})), clean)
            except MethodError as error:
                message = str(error)
            else:
                assert same(answer, expected), f"NaN in {value} went unnoticed"
                continue
            assert "NaN" in message, "the message says what it met"


@every_method
def test_only_what_the_card_asks_for(name):
    """A method runs with the extras that its card lists and no others, and says so when one is missing."""
    card, full = METHODS[name].card, views.view("square")
    lean = {need: full.extras[need] for need in card.needs}
    lean = View(full.x, full.k, row=full.row, col=full.col, extras=lean, layer=full.layer, depth=full.depth)
    assert same(run(name, lean), run(name, full))
    if card.needs:
        with pytest.raises(MethodError, match="needs"):
            METHODS[name]()(View(full.x, full.k, row=full.row, col=full.col))


def variants(name: str) -> list[Method]:
    """The method with its defaults, and with each option changed to another value that it accepts."""
    cls, found = METHODS[name], [METHODS[name]()]
    for option in fields(cls):
        value = getattr(cls(), option.name)
        if isinstance(value, bool):
            others = [not value]
        elif isinstance(value, (int, float)):
            others = [value + 1, value / 3] if isinstance(value, float) else [value + 1]
        else:
            others = ["a, b > c=1", "1", "True", (1, 2.5, "x")] if isinstance(value, (str, tuple)) else []
        for other in others:
            try:
                found.append(cls(**{option.name: other}))
            except (TypeError, ValueError):
                continue
    return found


@every_method
def test_options_survive_text_and_json(name, tmp_path):
    for method in variants(name):
        for keep in ("33.3%", "=64/image", "100/total"):
            plan = Plan.of(method, keep=keep)
            assert Plan.of(str(plan)) == plan
            assert Plan.of(str(method), keep=keep) == plan
            assert Plan.of(plan.to_dict()) == plan
            plan.save(tmp_path / "plan.json")
            assert Plan.load(tmp_path / "plan.json") == plan
        assert hash(method) == hash(type(method)(**method.options()))
