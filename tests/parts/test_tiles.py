import pytest
import torch

from foveate.parts.select import top_within
from foveate.parts.tiles import allocate, boxes, centres, overview
from foveate.tokens import Extra, View


@pytest.mark.parametrize(
    ("weight", "total", "room", "given"),
    [
        ((1, 1, 2), 8, (9, 9, 9), [2, 2, 4]),
        ((1, 1, 1), 8, (9, 9, 9), [3, 3, 2]),  # two units over: largest remainder, then lowest index
        ((5, 3, 2), 11, (9, 9, 9), [6, 3, 2]),  # 5.5, 3.3, 2.2
        ((8, 1, 1), 10, (4, 9, 9), [4, 3, 3]),  # the first is full at 4, the six left are halved
        ((1, 0, 0), 10, (4, 2, 6), [4, 2, 4]),  # 6 without weight: by room, 1.5 and 4.5
        ((0, 0), 3, (5, 5), [2, 1]),
        ((1, 1), 99, (5, 2), [5, 2]),
        ((3, 1), 0, (5, 2), [0, 0]),
    ],
)
def test_allocate(weight, total, room, given):
    assert allocate(weight, total, room) == given


def test_allocate_by_rank():
    assert allocate((5, 3, 2), 11, (9, 9, 9), first=(0, 0, 1)) == [5, 3, 3]


def test_allocate_always_adds_up():
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        parts = int(torch.randint(1, 9, (1,), generator=draw))
        room = torch.randint(0, 12, (parts,), generator=draw).tolist()
        weight = (torch.rand(parts, generator=draw) * torch.randint(0, 2, (parts,), generator=draw)).tolist()
        total = int(torch.randint(0, 60, (1,), generator=draw))
        given = allocate(weight, total, room)
        assert sum(given) == min(total, sum(room))
        assert all(0 <= g <= r for g, r in zip(given, room, strict=True))


def test_top_within():
    score = torch.tensor([1.0, 5.0, 2.0, 5.0, 9.0, 5.0])
    group = torch.tensor([0, 1, 0, 1, 2, 1])
    assert top_within(score, group, torch.tensor([1, 2, 0])).tolist() == [1, 2, 3]
    assert top_within(score, group, torch.tensor([9, 0, 1])).tolist() == [0, 2, 4]


def tiled(rows: int, cols: int, side: int, skip: int = 0) -> View:
    """An overview of side x side, then rows x cols tiles in lines that run through them; ``skip`` lines are padding."""
    places = [(0, r, c) for r in range(side) for c in range(side)]
    for y in range(skip, rows * side - skip):
        places += [(1 + y // side * cols + x // side, y % side, x % side) for x in range(cols * side)]
    tile, row, col = torch.tensor(places).T
    return View(torch.zeros(len(places), 1), 1, tile=tile, row=row, col=col)


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (1, 3), (3, 1), (2, 1), (2, 3)])
def test_arrangement_is_read_from_the_order(rows, cols):
    box = boxes(tiled(rows, cols, 4))
    assert overview(box) == 0
    expected = [[c / cols, r / rows, (c + 1) / cols, (r + 1) / rows] for r in range(rows) for c in range(cols)]
    torch.testing.assert_close(box[1:], torch.tensor(expected, dtype=torch.float64))


def test_padding_is_no_part_of_the_picture():
    """Two by two tiles of 4 x 4, one line cut off above and below: the picture is 6 lines high."""
    view = tiled(2, 2, 4, skip=1)
    box = boxes(view)
    torch.testing.assert_close(box[1], torch.tensor([0, -1 / 6, 0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(box[4], torch.tensor([0.5, 0.5, 1, 7 / 6], dtype=torch.float64))
    spot = centres(view, box, 0)
    assert spot[0].tolist() == [0.125, 0.125], "the overview shows the picture without its padding"
    assert spot[16].tolist() == pytest.approx([1 / 16, 1 / 12])
    assert spot[-1].tolist() == pytest.approx([15 / 16, 11 / 12])


def test_boxes_of_the_view_win():
    view = tiled(2, 2, 2)
    given = torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1.0], [0, 0, 1, 1], [0, 0, 1, 1]])
    view = View(view.x, 1, tile=view.tile, row=view.row, col=view.col, extras={"boxes": Extra(given)})
    assert overview(boxes(view)) == 2
    assert boxes(view).tolist() == given.tolist()


def test_no_overview():
    assert overview(torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])) is None
