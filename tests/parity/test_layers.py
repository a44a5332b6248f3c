"""Methods between the language model's layers, against the authors' functions.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, index, load, recordings

from foveate.methods.fastv import FastV
from foveate.methods.llavolta import LLaVolta
from foveate.methods.pdrop import PyramidDrop
from foveate.methods.sparsevlm import SparseVLM, raters, relation, votes
from foveate.methods.tokencarve import MODES, TokenCarve, information
from foveate.parts.select import top
from foveate.tokens import Extra, View


@pytest.mark.parametrize("method", ["fastv", "pdrop", "sparsevlm", "tokencarve", "llavolta"])
def test_there_are_recordings(method):
    assert [*FOLDER.glob(f"{method}_*.npz")], f"no recordings of {method} in {FOLDER}"


def of_image(kept_abs: torch.Tensor, start: int, n: int) -> list[int]:
    """Which of the image's n tokens are among kept places of the whole sequence."""
    place = kept_abs.long() - start
    return place[(place >= 0) & (place < n)].tolist()


@recordings("fastv")
def test_fastv(path):
    data = load(path)
    start, n = data["sys_len"], data["num_image"]
    row = data["attn_last_row"][:, start : start + n]
    answer = FastV()(View(torch.zeros(n, 2), data["num_image_kept"], extras={"last_row": Extra(row)}))
    assert answer.anchor.tolist() == of_image(data["kept_abs"], start, n)


@recordings("pdrop")
def test_pyramid_drop(path):
    """Queries are the states, keys the states shifted by one feature, with equal slices for the heads."""
    data = load(path)
    x, start, n, heads = data["hidden"], data["sys_len"], data["num_image_now"], data["heads"]
    query, key = x[-1].view(heads, -1), x.roll(1, -1).view(len(x), heads, -1)
    row = (torch.einsum("hc,nhc->hn", query, key) / query.shape[1] ** 0.5).softmax(-1)[:, start : start + n]
    share, whole = data["ratio_list"][data["stage"] + 1].item(), data["num_image_original"]
    assert data["num_image_kept"] == int(share * whole)
    answer = PyramidDrop()(View(torch.zeros(n, 2), data["num_image_kept"], extras={"ahead_row": Extra(row)}))
    assert data["stable_f64"]
    assert answer.anchor.tolist() == of_image(data["kept_abs"], start, n)


@recordings("sparsevlm_a")
def test_sparsevlm_ranks(path):
    """Raters, what they attend to, and the three masks of the authors' table. Every mask is of all the tokens."""
    data = load(path)
    n, start = len(data["visual"]), data["v_start"]
    vote = votes(data["visual"], data["text"])
    torch.testing.assert_close(vote, data["rater_score"], **CLOSE)
    assert index(raters(vote).nonzero()[:, 0]) == index(data["raters"])
    score = relation(data["text_rows"][..., start : start + n], raters(vote))
    torch.testing.assert_close(score, data["relation"], **CLOSE)
    for layer, count in zip((2, 6, 15), index(data["schedule"]), strict=True):
        assert index(top(score, count)) == index(data[f"mask_layer{layer}"].nonzero()[:, 0])


@recordings("sparsevlm_[bc]")
def test_sparsevlm_counts_by_rank(path):
    data = load(path)
    n, start = len(data["mask"]), data["v_start"]
    rate = torch.zeros(data["text_rows"].shape[1], dtype=torch.bool).index_fill_(0, data["raters"].long(), True)
    rows = data["text_rows"][..., start : start + n]
    score = relation(rows, rate)
    torch.testing.assert_close(score, data["relation"], **CLOSE)
    count = SparseVLM(adaptive=True, scale=data["scale"], bias=data["bias"]).by_rank(rows.mean(0)[rate])
    assert count == data["num_kept"]
    assert index(top(score, count)) == index(data["mask"].nonzero()[:, 0])


@recordings("sparsevlm_d")
def test_sparsevlm_clusters(path):
    """One token that all words look at is kept, the others are recycled. Rows are compared as a set."""
    data = load(path)
    x = torch.cat([data["x"][:1], data["x"]])
    rows = torch.zeros(1, 3, len(x))
    rows[..., 0] = 1
    entered = {"first": Extra(torch.zeros(1, 2)), "first_text": Extra(torch.zeros(3, 2))}  # all words rate
    view = View(x, data["cluster_num"] + 1, extras={"text_rows": Extra(rows), **entered})
    out = SparseVLM(recycle=1)(view).check().apply(x)
    torch.testing.assert_close(out[0], x[0])
    nearest = torch.cdist(out[1:], data["merged"]).argmin(1)
    assert sorted(nearest.tolist()) == list(range(data["cluster_num"]))
    torch.testing.assert_close(out[1:], data["merged"][nearest], **CLOSE)


@recordings("tokencarve")
def test_tokencarve(path):
    """The recorded points are of the mix, whatever the mode."""
    data = load(path)
    start, n, k, group = data["sys_len"], data["num_image"], data["target"], data["group"].long()
    x, row = data["hidden"][start : start + n], data["attn_last_row"][:, start : start + n]
    view = View(x, k, extras={"last_row": Extra(row)})
    method = TokenCarve(mode=MODES[data["mode"]], weight=data["weight"])
    torch.testing.assert_close(information(x), data["sv_score"], **CLOSE)
    torch.testing.assert_close(method.attention(view), data["av_score"], **CLOSE)
    answer = method(view).check()
    kept, src, dst = (data[name].long() - start for name in ("kept_abs", "merge_src_abs", "merge_dst_abs"))
    kept = kept[(kept >= 0) & (kept < n)]
    assert answer.m == len(kept) == k and len(answer.src) - k == len(src) == data["merge_num"]
    tied = data["mode"] == 0 and (data["tie_at_stage1_cut"] or data["tie_at_AB_cut"])
    if (
        tied or "dups" in path.stem
    ):  # copies tie for their points; which of them has more moves others by a place or two
        ours, theirs = (torch.bincount(group[i], minlength=n) for i in (answer.src, torch.cat([kept, src])))
        assert (ours - theirs).abs().sum() <= len(answer.src) // 9
        return
    torch.testing.assert_close(TokenCarve(weight=data["weight"]).score(view), data["rank_score"], **CLOSE)
    assert answer.anchor.tolist() == kept.tolist()
    goal = dict(zip(answer.src.tolist(), answer.anchor[answer.dst].tolist(), strict=True))
    assert [goal[i] for i in index(src)] == index(dst)
    out = data["out"][start : start + k]
    torch.testing.assert_close(answer.apply(x), out, **CLOSE)


@recordings("llavolta_pool")
@pytest.mark.parametrize("stride", [2, 5, 8])
def test_llavolta(path, stride):
    """Positions are recorded before their fraction is cut off, in half precision."""
    data = load(path)
    x, out = data["x"], data[f"out_s{stride}"]
    answer = LLaVolta(stride=stride, remainder=False)(View(x, len(x))).check()
    torch.testing.assert_close(answer.apply(x), out, **CLOSE)
    assert (data["pos_start"] + answer.anchor).tolist() == index(data[f"pos_s{stride}"])
    whole = LLaVolta(stride=stride)(View(x, len(x))).check()
    assert whole.m == -(-len(x) // stride)
    torch.testing.assert_close(whole.apply(x)[: len(out)], out, **CLOSE)
