import torch

from foveate.methods.onevision_encoder import OneVisionEncoder, prediction
from foveate.tokens import Extra, View


def picture(pixels: torch.Tensor, height: int, width: int, k: int, **more) -> View:
    return View.on_grid(torch.zeros(len(pixels), 2), k, height, width, extras={"pixels": Extra(pixels)}, **more)


def test_the_mean_of_the_neighbours_by_hand():
    """A 2 x 3 picture of one pixel per patch: 1 2 3 / 4 5 9."""
    view = picture(torch.tensor([[1.0], [2], [3], [4], [5], [9]]), 2, 3, 2)
    guess = torch.tensor([(2 + 4) / 2, (1 + 3 + 5) / 3, (2 + 9) / 2, (1 + 5) / 2, (2 + 4 + 9) / 3, (3 + 5) / 2])
    torch.testing.assert_close(prediction(view.need("pixels"), view)[:, 0], guess)
    expected = (torch.tensor([1.0, 2, 3, 4, 5, 9]) - guess) ** 2
    torch.testing.assert_close(OneVisionEncoder().score(view), expected)
    assert OneVisionEncoder()(view).anchor.tolist() == [2, 5]


def test_what_is_surprising_stays():
    """A flat picture with one odd patch: it, and those whose neighbour it is."""
    pixels = torch.full((25, 3), 0.5)
    pixels[12] = 1.0
    kept = OneVisionEncoder()(picture(pixels, 5, 5, 5)).anchor.tolist()
    assert kept == [7, 11, 12, 13, 17]


def test_tiles_do_not_touch():
    pixels = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
    view = View(
        torch.zeros(4, 2), 1, tile=torch.tensor([0, 0, 1, 1]), row=torch.zeros(4).long(), col=torch.tensor([0, 1, 0, 1])
    )
    assert prediction(pixels, view)[:, 0].tolist() == [0, 0, 9, 9]


def test_alone_a_patch_is_compared_with_the_whole():
    view = View(torch.zeros(2, 2), 1, row=torch.tensor([0, 5]), col=torch.tensor([0, 5]))
    assert prediction(torch.tensor([[1.0], [3.0]]), view)[:, 0].tolist() == [2, 2]


def test_a_later_frame_is_compared_with_the_one_before():
    """Motion: what stands still is predicted to the last bit, however rich it is."""
    frame = torch.randn(9, 4)
    later = frame.clone()
    later[4] += 1
    place = torch.arange(9).repeat(2)
    view = View(
        torch.zeros(18, 2),
        1,
        t=torch.arange(2).repeat_interleave(9),
        row=place // 3,
        col=place % 3,
        extras={"pixels": Extra(torch.cat([frame, later]))},
    )
    score = OneVisionEncoder().score(view)
    torch.testing.assert_close(score[9:], torch.zeros(9).index_fill(0, torch.tensor([4]), 4.0))
