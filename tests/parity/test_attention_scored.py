"""Methods scored by the tower's attention, and those that know tiles, against the authors' functions.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import math

import pytest
import torch
from recorded import CLOSE, FOLDER, index, load, recordings

from foveate.methods.globalcom2 import GlobalCom2
from foveate.methods.hiprune import HiPrune
from foveate.methods.hired import HiRED
from foveate.methods.prumerge import PruMerge
from foveate.methods.vispruner import VisPruner
from foveate.methods.vtc_cls import VTCCLS
from foveate.tokens import Extra, View


@pytest.mark.parametrize("method", ["vtccls", "hired", "globalcom2", "vispruner", "hiprune", "prumerge"])
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("vtccls")
def test_vtc_cls(path):
    """The authors sum layers `start` to the last but one. Sums of sums are sums: all but the last go in as "early"."""
    data = load(path)
    rows = data["cls_rows"][data["start_layer"] - data["first_layer_stored"] : -1, :, 1:]  # (layers, h, n)
    extras = {"early": Extra(rows[:-1].sum(0)), "attention": Extra(rows[-1])}
    view = View(torch.zeros(rows.shape[-1], 2), data["num_keep"], extras=extras)
    torch.testing.assert_close(VTCCLS().score(view), data["score"], **CLOSE)
    assert index(VTCCLS()(view).anchor) == index(data["kept"])


@recordings("vispruner")
def test_vispruner(path):
    data = load(path)
    method = VisPruner(important=data["important_ratio"])
    kept = method(View(data["x"], data["num_keep"], extras={"attention": Extra(data["cls_attn"])})).anchor
    assert len(kept) == data["num_keep"]
    if data["stable_f64"]:
        assert torch.isin(data["important"].long(), kept).all()
        assert kept.tolist() == index(data["kept"])
    else:  # from the first tie on the rounds go another way; attention decides the important ones alone
        group = data["group"].long()
        ours, theirs = (torch.bincount(group[i.long()], minlength=len(group)) for i in (kept, data["important"]))
        assert (ours >= theirs).all()


@recordings("hiprune")
def test_hiprune(path):
    """In the authors' code a neighbour outside the grid is the token at the other end of the next row, or a corner."""
    data = load(path)
    n, width = len(data["deep"]), data["grid_width"]
    k = max(1, round(n * (1 - data["drop_ratio"])))
    extras = {"early": Extra(data["shallow"][None]), "attention": Extra(data["deep"][None])}
    view = View.on_grid(torch.zeros(n, 2), k, n // width, width, extras=extras)
    kept = HiPrune(alpha=data["alpha"])(view).anchor
    assert len(kept) == k
    anchors = data["shallow"].sort(descending=True, stable=True).indices[: round(data["alpha"] * k / 5)]
    row, col = anchors // width, anchors % width
    outside = [(col == 0, -1), (col == width - 1, 1), (row == 0, -width), (row == n // width - 1, width)]
    wrong = {int(t) for at, step in outside for t in (anchors[at] + step).clamp(0, n - 1)}
    ours, theirs = set(kept.tolist()), set(index(data["kept"]))
    assert theirs - ours <= wrong
    assert torch.isin(anchors, kept).all()


@recordings("prumerge")
def test_prumerge(path):
    """Row 0 is the CLS token. The authors' tokens are in order of attention, the sum of the rest is appended.

    Their PruMerge+ can never add the last token of all; ours does if the spacing meets it.
    """
    data = load(path)
    x, attention, out, plus = data["features"][1:], data["cls_attn"], data["out"], "spatial_extra" in data
    theirs = torch.cat([data["topk_by_score"], data["spatial_extra"]] if plus else [data["topk_by_score"]]).long()
    last = len(x) - 1
    more = [last] if plus and last % max(1, data["spatial_step"]) == 0 and last not in theirs else []
    view = View(x, len(out) + len(more), extras={"attention": Extra(attention[None]), "keys": Extra(data["keys"][1:])})
    method = PruMerge(plus=plus, adaptive=True, neighbours=data["merge_k"])
    reduction = method(view).check()
    assert method.card.count == "content"
    assert reduction.m == view.k
    assert method.kept(attention, view.k - 1).tolist() == sorted([*theirs.tolist(), *more])
    ours, is_kept = reduction.apply(x), torch.isin(reduction.anchor, theirs)
    # Where several tokens tie for the last of the neighbours, which of them is added is the authors' topk's business.
    keys = torch.nn.functional.normalize(data["keys"][1:], dim=1)
    likeness = (keys[reduction.anchor[is_kept]] @ keys.mT).sort(dim=1, descending=True).values  # itself is the first
    clear = likeness[:, data["merge_k"]] - likeness[:, data["merge_k"] + 1] > 1e-6
    torch.testing.assert_close(ours[is_kept][clear], out[:-1][theirs.argsort()][clear], **CLOSE)
    rest = out[-1] - sum(attention[i] * x[i] for i in more)
    is_rest = ~torch.isin(reduction.anchor, torch.tensor([*theirs.tolist(), *more]))
    torch.testing.assert_close(ours[is_rest], rest[None], **CLOSE)
    if not plus:  # a given budget is the same thing, if the outliers are as many
        torch.testing.assert_close(PruMerge(neighbours=data["merge_k"])(view).apply(x), ours)


def tiles(side: int, tiles: list[tuple[int, torch.Tensor]]) -> View:
    """A view of tiles that are listed one after another, which is how one column of them stands in a prompt.

    tiles: for each its index, and (side * side,) which of its tokens are there.
    """
    place = torch.arange(side * side)
    tile = torch.cat([torch.full((int(there.sum()),), i) for i, there in tiles])
    at = torch.cat([place[there] for _, there in tiles])
    return View(torch.zeros(len(at), 1), 1, tile=tile, row=at // side, col=at % side)


@recordings("hired")
def test_hired(path):
    """Tiles are given as one column, so that the part of the overview that each shows is a strip, as in the authors' code.

    Theirs rounds every tile's budget down; ours gives the tokens that are left to some of the tiles.
    """
    data = load(path)
    late, early = data["bottom_cls_rows"][:, :, 1:], data["top_cls_rows_full_image"][:, 1:]  # (p, h, n), (h, n)
    parts, heads, n = late.shape
    side = round(n**0.5)
    k = int(parts * n * data["token_budget_rate"])
    view = tiles(side, [(i, torch.ones(n, dtype=torch.bool)) for i in range(parts)])
    padded = torch.cat([early, torch.zeros(heads, n * (parts - 1))], 1)
    extras = {"attention": Extra(late.permute(1, 0, 2).flatten(1)), "early": Extra(padded)}
    view = View(view.x, k, tile=view.tile, row=view.row, col=view.col, extras=extras)
    method = HiRED(alpha=data["alpha"])
    budgets, theirs = method.budgets(view), index(data["count_per_image"])
    kept = method(view).anchor
    assert sum(budgets) == len(kept) == k
    assert torch.bincount(view.tile[kept], minlength=parts).tolist() == budgets
    assert budgets[0] == theirs[0]
    assert all(0 <= ours - their <= 1 for ours, their in zip(budgets, theirs, strict=True))
    assert set(data["mask"].flatten().nonzero()[:, 0].tolist()) <= set(kept.tolist())


def unpadded(size: list[int], rows: int, cols: int, side: int) -> torch.Tensor:
    """(rows, cols, side * side) which tokens of the tiles show the picture, for a picture of (width, height) pixels."""
    width, height, grid_w, grid_h = *size, cols * side, rows * side
    there = torch.zeros(grid_h, grid_w, dtype=torch.bool)
    if width / height > grid_w / grid_h:
        cut = (grid_h - int(height * (grid_w / width))) // 2
        there[cut : grid_h - cut] = True
    else:
        cut = (grid_w - int(width * (grid_h / height))) // 2
        there[:, cut : grid_w - cut] = True
    return there.view(rows, side, cols, side).permute(0, 2, 1, 3).reshape(rows, cols, -1)


@recordings("globalcom2")
def test_globalcom2(path):
    """The recorded scores are logits: their exponential goes in as attention.

    Budgets are rounded down in the authors' code, ours give out what is left. The recordings name kept tokens by their
    features; in a padded picture these stand at wrong places, so only which tokens they are is compared.
    """
    data = load(path)
    (cols, rows), crops = data["patch_wh"].tolist(), data["crop_scores"]
    parts, n = crops.shape
    side = round(n**0.5)
    there = unpadded(data["original_wh"].tolist(), rows, cols, side).view(parts, n)
    # In the prompt a line of tokens runs through all tiles of a row.
    line = torch.arange(parts * n).view(rows, cols, side, side).permute(0, 2, 1, 3).flatten()
    token = line[there.flatten()[line]]  # (m,) tile * n + place, of the tokens that are there
    tile, at = torch.cat([torch.zeros(n).long(), 1 + token // n]), torch.cat([torch.arange(n), token % n])
    scores = torch.cat([data["base_scores"], crops.flatten()[token]])
    ratio = data["retention_ratio"]
    extras = {"attention": Extra(scores.exp()[None])}

    def view(k: int) -> View:
        return View(torch.zeros(len(tile), 1), k, tile=tile, row=at // side, col=at % side, extras=extras)

    out = data["out_crops"]
    newline = (out - data["image_newline"]).abs().amax(1) < 2e-3
    far = torch.cdist(out[~newline].double(), data["features"].flatten(0, 1).double(), p=torch.inf)
    assert float(far.amin(1).max()) < 2e-2, "every row is a token of the tiles"
    recorded = far.argmin(1)
    count = torch.bincount(recorded // n, minlength=parts)

    k = max(len(recorded) + len(data["thumb_idx_by_score"]), math.ceil(ratio * len(tile)))
    method = GlobalCom2()
    budgets, kept = method.budgets(view(k)), method(view(k)).anchor
    assert sum(budgets) == len(kept) == k
    assert budgets[0] == len(data["thumb_idx_by_score"])
    assert sorted(index(data["thumb_idx_by_score"])) == kept[kept < n].tolist()
    ours = token[kept[kept >= n] - n]
    more = torch.tensor(budgets[1:]) - count
    assert 0 <= int(more.min()) <= int(more.max()) <= 1, f"{budgets} against {count.tolist()}"
    assert set(recorded.tolist()) <= set(ours.tolist())
