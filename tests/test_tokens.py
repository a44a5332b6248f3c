"""View and Reduction: what everything else is made of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import MethodError
from foveate.tokens import Extra, Reduction, View

WIDTH = 3


@st.composite
def reductions(draw, n: int | None = None, drops: bool = True):
    """Any reduction: several edges per token and per slot, slots without edges, weights or none, inserted rows or none."""
    n = draw(st.integers(1, 8)) if n is None else n
    anchor = torch.tensor(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True)))
    if drops and draw(st.booleans()):
        return Reduction.drop(anchor, n)
    m = len(anchor)
    edges = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, m - 1)), max_size=14))
    src, dst = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    weights = st.lists(st.integers(-4, 4).map(lambda w: w / 2), min_size=len(src), max_size=len(src))
    weight = draw(st.none() | weights.map(lambda w: torch.tensor(w, dtype=torch.float32)))
    rows = st.lists(st.integers(-3, 3), min_size=m * WIDTH, max_size=m * WIDTH)
    inserted = draw(st.none() | rows.map(lambda r: torch.tensor(r, dtype=torch.float32).view(m, WIDTH)))
    return Reduction(n, src, dst, weight, anchor, inserted)


@st.composite
def chains(draw, length: int = 2):
    """Reductions of which each starts where the one before ends."""
    chain = [draw(reductions())]
    while len(chain) < length:
        chain.append(draw(reductions(n=chain[-1].m)))
    return chain


def features(n: int) -> torch.Tensor:
    """Whole numbers, so that sums are exact in any order."""
    return torch.randint(-5, 6, (n, WIDTH), generator=torch.Generator().manual_seed(n)).float()


def dense(one: Reduction) -> torch.Tensor:
    """(m, n) the reduction as a matrix."""
    matrix = torch.zeros(one.m, one.n)
    weight = torch.ones(len(one.src)) if one.weight is None else one.weight
    for s, d, w in zip(one.src.tolist(), one.dst.tolist(), weight.tolist(), strict=True):
        matrix[d, s] += w
    return matrix


@given(reductions())
def test_apply_is_a_matrix_product(one):
    x = features(one.n)
    expected = dense(one) @ x + (0 if one.inserted is None else one.inserted)
    assert torch.equal(one.check().apply(x), expected)
    edges = dense(Reduction(one.n, one.src, one.dst, None, one.anchor))
    assert torch.equal(one.sizes(torch.ones(one.n)), edges.sum(1))


@given(chains())
def test_then_is_one_after_the_other(chain):
    first, second = chain
    both = first.then(second).check()
    x = features(first.n)
    assert torch.equal(both.apply(x), second.apply(first.apply(x)))
    assert both.anchor.tolist() == first.anchor[second.anchor].tolist()
    assert both.is_drop == (first.is_drop and second.is_drop)


@given(chains(length=3))
def test_then_is_associative(chain):
    a, b, c = chain
    x = features(a.n)
    assert torch.equal(a.then(b).then(c).apply(x), a.then(b.then(c)).apply(x))


@given(reductions())
def test_identity_is_neutral(one):
    x = features(one.n)
    for same in (Reduction.identity(one.n).then(one), one.then(Reduction.identity(one.m))):
        assert torch.equal(same.apply(x), one.apply(x)) and torch.equal(same.anchor, one.anchor)


def test_then_needs_matching_numbers():
    with pytest.raises(MethodError, match="to 2 slots by one of 3"):
        Reduction.drop(torch.tensor([0, 1]), 4).then(Reduction.identity(3))


@given(reductions())
def test_sorted_moves_slots_with_their_anchors(one):
    x, ordered = features(one.n), one.sorted().check()
    order = one.anchor.argsort()
    assert ordered.anchor.tolist() == sorted(one.anchor.tolist())
    assert torch.equal(ordered.apply(x), one.apply(x)[order])
    assert torch.equal(ordered.sizes(torch.ones(one.n)), one.sizes(torch.ones(one.n))[order])
    assert ordered.is_drop == one.is_drop


@given(reductions(), st.data())
def test_lift_leaves_the_others_alone(one, data):
    n = one.n + data.draw(st.integers(0, 4))
    places = torch.tensor(data.draw(st.permutations(range(n))))
    index = places[: one.n].sort().values
    others = places[one.n :]
    extra = others[: data.draw(st.integers(0, len(others)))]
    lifted = one.lift(index, n, extra).check()
    x = features(n)
    assert lifted.anchor.tolist() == sorted([*index[one.anchor].tolist(), *extra.tolist()])
    slots = one.apply(x[index])
    got = dict(zip(lifted.anchor.tolist(), lifted.apply(x), strict=True))
    for token, row in zip(index[one.anchor].tolist(), slots, strict=True):
        assert torch.equal(got[token], row)
    for token in extra.tolist():
        assert torch.equal(got[token], x[token])


@given(st.integers(1, 10), st.data())
def test_groups_average(n, data):
    m = data.draw(st.integers(1, n))
    rest = data.draw(st.lists(st.integers(-1, m - 1), min_size=n - m, max_size=n - m))
    assign = torch.tensor([*range(m), *rest])  # every slot has a member
    x, size = features(n), torch.arange(1.0, n + 1)
    for weights in (None, size):
        one = Reduction.groups(assign, torch.arange(m), weights).check()
        for slot in range(m):
            members = (assign == slot).nonzero()[:, 0]
            w = torch.ones(len(members)) if weights is None else weights[members]
            torch.testing.assert_close(one.apply(x)[slot], (w @ x[members]) / w.sum())
            assert one.sizes(size)[slot] == size[members].sum()


@given(reductions(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_apply_keeps_the_dtype_and_sums_in_float32(one, dtype):
    x = features(one.n).to(dtype)
    out = one.apply(x)
    assert out.dtype == dtype
    assert torch.equal(out, one.apply(x.double()).to(torch.float32).to(dtype))


def test_long_sums_do_not_lose_small_terms_in_bfloat16():
    """1 + 1 + ... stops at 256 if the running sum is bfloat16."""
    one = Reduction(1000, torch.arange(1000), torch.zeros(1000, dtype=torch.long), None, torch.tensor([0]))
    assert one.apply(torch.ones(1000, 1, dtype=torch.bfloat16)).item() == 1000


def test_gradients_flow_through_apply():
    x = torch.randn(4, WIDTH, requires_grad=True)
    Reduction.groups(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 2])).apply(x).sum().backward()
    assert x.grad[:, 0].tolist() == [0.5, 0.5, 1, 0]


def long(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


KEPT = long(0, 1)
FAULTY = {
    "keeps no token": Reduction.drop(long(), 3),
    "3 slots for 2 tokens": Reduction.drop(long(0, 1, 1), 2),
    "unequal length": Reduction(3, long(0, 1), long(0), None, long(0)),
    "edges of unequal length": Reduction(3, long(0, 1), long(0, 0), torch.ones(3), long(0)),
    "anchor outside 0..2": Reduction.drop(long(0, 3), 3),
    "an anchor outside": Reduction.drop(long(-1, 1), 3),
    "anchor of two slots": Reduction.drop(long(1, 1), 3),
    "from outside 0..2": Reduction(3, long(0, 3), long(0, 0), None, long(0)),
    "edge from outside": Reduction(3, long(-1, 0), long(0, 0), None, long(0)),
    "slot outside 0..0": Reduction(3, long(0, 1), long(0, 1), None, long(0)),
    "into a slot outside": Reduction(3, long(0, 1), long(0, -1), None, long(0)),
    "not finite": Reduction(3, long(0, 1), long(0, 0), torch.tensor([1.0, torch.nan]), long(0)),
    "weight that is not finite": Reduction(3, long(0), long(0), torch.tensor([torch.inf]), long(0)),
    "64-bit integers": Reduction.drop(torch.tensor([0.0, 1.0]), 3),
    "not vectors": Reduction.drop(long(0, 1)[:, None], 3),
    "inserts rows": Reduction(3, long(0), long(0), None, long(0), torch.zeros(2, WIDTH)),
    "sends them elsewhere": Reduction(3, KEPT, long(1, 0), None, KEPT),
}


@pytest.mark.parametrize("message", FAULTY)
def test_check_names_the_fault(message):
    with pytest.raises(MethodError, match=message):
        FAULTY[message].check()


def test_slots_may_hold_inserted_rows_only():
    one = Reduction(3, long(), long(), None, long(2), torch.full((1, WIDTH), 7.0)).check()
    assert one.apply(torch.ones(3, WIDTH)).tolist() == [[7.0] * WIDTH]


# --- View


def view(n: int = 6, k: int = 3) -> View:
    extras = {
        "attention": Extra(torch.arange(2.0 * n).view(2, n), 4, "a domain"),
        "keys": Extra(torch.arange(5.0 * n).view(n, 5)),
        "question": Extra(features(7)),
    }
    index = torch.arange(n)
    return View(
        features(n), k, kind=index * 0, tile=index % 2, t=index // 3, row=index + 1, col=index + 2, size=index + 1.0,
        marks={"key": index % 2 == 0}, extras=extras, ordinal=2,
    )  # fmt: skip


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
def test_take_takes_everything_along(index):
    full, few = view(), view().take(torch.tensor(index))
    assert few.n == len(index) and few.k == min(3, len(index)) and few.ordinal == 2
    for name in ("x", "kind", "tile", "t", "row", "col", "size"):
        assert torch.equal(getattr(few, name), getattr(full, name)[index])
    assert torch.equal(few.marks["key"], full.marks["key"][index])
    assert torch.equal(few.need("attention"), full.need("attention")[:, index])
    assert torch.equal(few.need("keys"), full.need("keys")[index])
    assert torch.equal(few.need("question"), full.need("question")), "words are no tokens of the view"
    assert few.extras["attention"].layer == 4 and few.extras["attention"].domain == "a domain"


def test_need_says_where_to_ask():
    with pytest.raises(MethodError, match=r"no 'values'.*\n.*`needs` of the method's card"):
        view().need("values")


def test_defaults():
    bare = View(torch.zeros(4, 2), 1)
    assert bare.col.tolist() == [0, 1, 2, 3] and not bare.row.any() and not bare.tile.any() and not bare.kind.any()
    assert bare.size.tolist() == [1.0] * 4 and bare.n == 4


def test_on_grid():
    grid = View.on_grid(torch.zeros(6, 2), 2, 2, 3, ordinal=1)
    assert grid.row.tolist() == [0, 0, 0, 1, 1, 1] and grid.col.tolist() == [0, 1, 2, 0, 1, 2] and grid.ordinal == 1
    with pytest.raises(MethodError, match="6 tokens do not fill a 2 x 2 grid"):
        View.on_grid(torch.zeros(6, 2), 2, 2, 2)


@pytest.mark.parametrize(
    ("x", "k", "more", "message"),
    [
        (torch.zeros(1, 4, 2), 1, {}, "(n, d)"),
        (torch.zeros(4, 2), 0, {}, "cannot ask for 0"),
        (torch.zeros(4, 2), 5, {}, "cannot ask for 5"),
        (torch.zeros(4, 2), 1, {"row": torch.zeros(3)}, "row has shape"),
    ],
)
def test_view_is_checked(x, k, more, message):
    with pytest.raises(MethodError) as caught:
        View(x, k, **more)
    assert message in str(caught.value)
