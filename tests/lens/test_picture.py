"""A picture of what was kept: lit cells are the input's pixels, dropped ones are dark, whatever the layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import lens
from foveate.report import ImageReport

WHITE = Image.new("RGB", (48, 48), (200, 180, 160))
WHOLE = ((0.0, 0.0, 1.0, 1.0),)


def report(kept, grids=((6, 6),), boxes=WHOLE, kinds=None, **more):
    """One image whose tiles' tokens follow each other in raster order."""
    places = [(t, r, c) for t, (h, w) in enumerate(grids) for r in range(h) for c in range(w)]
    tile, row, col = torch.tensor(places).T
    kind = torch.zeros_like(tile) if kinds is None else torch.tensor(kinds)
    kept = torch.tensor(kept)
    one = ImageReport(0, 0, len(tile), len(kept), (), 0, 0, kept, grids, boxes, tile, row, col, kind)
    for name, value in more.items():
        object.__setattr__(one, name, value)
    return one


def cell(image, row, col, rows=6, cols=6):
    """The pixels of one cell."""
    height, width = image.height // rows, image.width // cols
    return np.asarray(image)[row * height : (row + 1) * height, col * width : (col + 1) * width]


def test_kept_cells_are_untouched_and_others_dark():
    noise = Image.fromarray(np.random.default_rng(0).integers(60, 255, (48, 48, 3), dtype=np.uint8))
    shown = lens.picture(noise, report([0, 7, 35]))
    assert shown.size == noise.size
    for index in range(36):
        before, after = cell(noise, *divmod(index, 6)), cell(shown, *divmod(index, 6))
        if index in (0, 7, 35):
            assert (before == after).all()
        else:
            assert after.max() < 0.4 * before.max()
            assert (after == after[..., :1]).all(), "dropped cells have no colour"


def test_a_grid_that_does_not_divide_the_picture():
    image = Image.new("RGB", (50, 31), (200, 180, 160))
    shown = np.asarray(lens.picture(image, report([4], ((3, 3),))))
    lit = (shown == (200, 180, 160)).all(-1)
    ys, xs = lit.any(1).nonzero()[0], lit.any(0).nonzero()[0]
    assert (ys[0], ys[-1], xs[0], xs[-1]) == (10, 20, 17, 32)  # pixels whose centres lie in the middle third
    assert lit.sum() == len(ys) * len(xs)


def test_tiles_side_by_side_share_one_picture():
    boxes = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    shown = lens.picture(WHITE, report([0, 7], ((2, 2), (2, 2)), boxes))
    assert shown.size == WHITE.size
    lit = (np.asarray(shown) == (200, 180, 160)).all(-1)
    assert lit[:24, :12].all() and lit[24:, 36:].all() and lit.sum() == 2 * 24 * 12


def test_an_overview_gets_a_panel_of_its_own():
    boxes = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
    shown = lens.picture(WHITE, report([0, 8], ((2, 2), (2, 2), (2, 2)), boxes))
    assert shown.width > 2 * WHITE.width
    overview = np.asarray(shown)[8 : 8 + 48, 8 : 8 + 48]
    assert (overview[:24, :24] == (200, 180, 160)).all()
    assert (overview[24:] < 100).all()


def test_structure_lights_nothing():
    shown = lens.picture(WHITE, report([0, 1], ((1, 2),), kinds=[0, 1]))
    lit = (np.asarray(shown) == (200, 180, 160)).all(-1)
    assert lit[:, :24].all() and not lit[:, 24:].any()


def test_merged_tokens_are_tinted():
    from foveate.tokens import Reduction

    merged = Reduction.groups(torch.tensor([0, 0, -1, -1]), torch.tensor([0]))
    shown = lens.picture(WHITE, report([0], ((1, 4),), reduction=merged))
    kept, fed, dropped = (cell(shown, 0, i, 1, 4)[0, 0].astype(int) for i in (0, 1, 2))
    assert tuple(kept) == (200, 180, 160)
    assert fed[2] > fed[0] + 20, "blue"
    assert dropped.max() < fed.max() < kept.max()


def test_places_outside_all_tiles_are_dark():
    shown = np.asarray(lens.picture(WHITE, report([0], ((1, 1),), ((0.0, 0.0, 1.0, 0.5),))))
    assert (shown[:24] == (200, 180, 160)).all()
    assert (shown[24:] < 100).all()


def test_a_picture_that_was_made_smaller_is_shown_so():
    pytest.importorskip("foveate.methods.resize")
    from foveate.plan import Plan

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    kept = [r * 6 + c for r in (1, 3, 5) for c in (1, 3, 5)]
    shown = np.asarray(lens.picture(noise, report(kept), plan=Plan.of("resize", 9)))
    assert shown.shape == (48, 48, 3)
    assert (shown[::2, ::2] == shown[1::2, 1::2]).all(), "half the rows and columns, each pixel doubled"


def test_size_enlarges_and_never_shrinks():
    assert lens.picture(WHITE, report([0]), size=96).size == (96, 96)
    assert lens.picture(WHITE, report([0]), size=12).size == (48, 48)


def test_strip_places_pictures_and_captions():
    red, green = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (10, 40), "lime")
    bare = np.asarray(lens.strip([red, green]))
    assert (bare == (255, 0, 0)).all(-1).sum() == 600
    assert (bare == (0, 255, 0)).all(-1).sum() == 400
    written = lens.strip([red, green], ["one", "two words that need several lines"])
    assert written.height > len(bare)
    assert lens.strip([red] * 5, columns=2).height > lens.strip([red] * 5).height


@pytest.mark.parametrize("normalised", [True, False])
def test_seen_undoes_the_processor(normalised):
    class Processor:
        class image_processor:  # noqa: N801
            do_normalize = normalised
            image_mean, image_std = [0.5] * 3, [0.5] * 3

    pixels = torch.rand(1, 3, 4, 6)
    inputs = {"pixel_values": (pixels - 0.5) / 0.5 if normalised else pixels}
    shown = np.asarray(lens.seen([WHITE], inputs, Processor())[0])
    assert np.abs(shown - pixels[0].permute(1, 2, 0).numpy() * 255).max() <= 0.51
    assert lens.seen([WHITE], {"pixel_values": torch.rand(4, 3, 8, 8)}, Processor())[0].size == (48, 48), "tiles"
