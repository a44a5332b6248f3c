import pytest
import torch

import tiny
from foveate import compress
from foveate.methods.mustdrop_merge import MustDropMerge, merged
from foveate.tokens import Extra, View


def grid(x: torch.Tensor, k: int, side: int, **more) -> View:
    index = torch.arange(len(x))
    return View(x, k, row=index // side, col=index % side, **more)


def test_the_most_uniform_window_goes_first():
    """Windows of 2 x 2 on 4 x 4: top left equal (mean cosine 1), the others drawn at random."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    x[[0, 1, 4, 5]] = torch.ones(8)
    reduction = MustDropMerge(window=2)(grid(x, 13, 4)).check()
    assert reduction.m == 13
    assert sorted(reduction.src[reduction.dst == reduction.dst[0]].tolist()) == [0, 1, 4, 5]
    torch.testing.assert_close(reduction.apply(x)[reduction.anchor.tolist().index(4)], torch.ones(8))


def test_mean_cosine_of_pairs_by_hand():
    """Of (1,0), (0,1), (1,0): cosines 0, 1, 0 make 1/3, less than 1/2 of a pair at 60 degrees."""
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0.5, 0.75**0.5]])
    home = torch.tensor([0, 0, 0, 1, 1])
    reduction = merged(x, home, 1, torch.ones(5)).check()
    assert reduction.m == 4 and sorted(reduction.src[reduction.dst == reduction.dst[-1]].tolist()) == [3, 4]
    # Two more must go: the other window loses them whole.
    assert merged(x, home, 3, torch.ones(5)).m == 2


def test_a_window_in_part_starts_with_its_most_typical():
    """One of four goes: the two rows that are most like all are averaged, the odd one stays."""
    x = torch.tensor([[1.0, 0], [1, 0], [0.9, 0.1], [0, 1]])
    reduction = MustDropMerge(window=2)(grid(x, 3, 2)).check()
    pair = reduction.src[reduction.dst == reduction.dst.mode().values].tolist()
    assert len(pair) == 2 and 3 not in pair


def test_windows_of_windows():
    x = torch.randn(81, 6, generator=torch.Generator().manual_seed(1))
    for k in (9, 8, 3, 1):
        reduction = MustDropMerge()(grid(x, k, 9)).check()
        assert reduction.m == k and sorted(reduction.src.tolist()) == list(range(81))
    torch.testing.assert_close(MustDropMerge()(grid(x, 1, 9)).apply(x)[0], x.mean(0))
    tiles = View(x, 2, tile=torch.arange(81) // 27)
    assert MustDropMerge()(tiles).m == 2, "fewer than tiles"


def test_where_it_merges():
    assert list(MustDropMerge().stops(23)) == [1] and list(MustDropMerge().stops(1)) == [0]
    with pytest.raises(ValueError, match="window"):
        MustDropMerge(window=1)


def attended(*heads: list[float]) -> View:
    return View(torch.zeros(len(heads[0]), 2), 1, extras={"attention": Extra(torch.tensor(heads))})


def test_key_tokens_by_hand():
    """Means over two heads are 0.2, 0.3, 0.1, 0.3, 0.1: 0.3 of five is two, rounded up; of equals the first."""
    view = attended([0.4, 0.1, 0.1, 0.4, 0], [0, 0.5, 0.1, 0.2, 0.2])
    assert MustDropMerge(key=0.3).mark(view)["key"].tolist() == [False, True, False, True, False]
    assert MustDropMerge(key=0.2).mark(view)["key"].tolist() == [False, True, False, False, False]
    assert MustDropMerge(key=1.0).mark(view)["key"].all()


@pytest.mark.parametrize(("share", "n", "number"), [(0.08, 576, 47), (0.08, 1, 1), (0.08, 25, 2), (0.07, 100, 7)])
def test_how_many_key_tokens(share, n, number):
    assert int(MustDropMerge(key=share).mark(attended([1.0] * n))["key"].sum()) == number


def test_without_key_tokens_no_attention_is_read():
    assert MustDropMerge().marked_by == ("attention",) and MustDropMerge(key=0).marked_by is None
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="key"):
            MustDropMerge(key=wrong)


def test_merge_similar_neighbours_and_protect_key_tokens():
    """The `works` sentence as far as the tower: of 2 x 2 windows the five most alike inside are merged, key tokens marked."""
    model = tiny.build("llava")
    batch = tiny.inputs("llava", model, [[3, ("image", "a"), 5]])
    entered = []
    hook = model.model.vision_tower.encoder.layers[1].register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    with torch.no_grad():
        model(**batch)
        hook.remove()
        with compress(model, "mustdrop_merge:keep=21,window=2,key=0.25") as run:
            model(**batch)
    x = torch.nn.functional.normalize(entered[0][0, 1:], dim=1)  # (36, d) after the first block, without CLS
    windows = [[6 * r + c, 6 * r + c + 1, 6 * r + c + 6, 6 * r + c + 7] for r in range(0, 6, 2) for c in range(0, 6, 2)]
    alike = [((x[one] @ x[one].T).sum() - 4).item() / 12 for one in windows]
    best = sorted(range(9), key=lambda i: -alike[i])[:5]
    (image,) = run.report.images
    into = [image.reduction.src[image.reduction.dst == slot].tolist() for slot in range(21)]
    assert sorted(one for one in into if len(one) > 1) == sorted(windows[i] for i in best)
    assert all(image.kept[slot] in one for slot, one in enumerate(into))
    assert int(image.marks["key"].sum()) == 6, "a quarter of 21, rounded up"
