"""MustDrop's filter by text, against the authors' function.

``test_recorded.py`` says what the recordings are and how they are compared.
"""

import pytest
from recorded import FOLDER, index, load, recordings

from foveate.methods.mustdrop_filter import MustDropFilter
from foveate.tokens import Extra, View


@pytest.mark.parametrize("method", ["mustdrop_e", "mustdrop_f"])
def test_there_are_recordings(method):
    assert list(FOLDER.glob(f"{method}_*.npz")), f"no recordings of {method} in {FOLDER}"


@recordings("mustdrop_[ef]")
def test_mustdrop_filter(path):
    data = load(path)
    start, n = int(data["v_start"]), int(data["num_image"])
    rows = data["text_rows"][:, :, start : start + n]  # (h, q, n)
    method = MustDropFilter(overall=data["global_thr"], single=data["individual_thr"])
    answer = method(View(rows.new_zeros(n, 1), n, extras={"text_rows": Extra(rows)}))
    assert index(answer.anchor) == index(data["kept"])
    fewer = method(View(rows.new_zeros(n, 1), answer.m, extras={"text_rows": Extra(rows)}))
    assert index(fewer.anchor) == index(data["kept"]), "a budget of as many keeps the same"
