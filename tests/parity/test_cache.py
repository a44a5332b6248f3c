"""The cache's merged keys and values, against the authors' functions.

``test_recorded.py`` says what the recordings are and how they are compared. One of them, with averages, documents a defect
of the original and is not compared.
"""

import pytest
import torch
from recorded import CLOSE, FOLDER, load

from foveate.entries import Entries
from foveate.methods.lookm import LOOKM
from foveate.tokens import Extra, Kind

RECORDED = {
    "lookm_a_textpivot": {"merge": "pivot"},
    "lookm_b_textweighted": {"merge": "weighted"},
    "lookm_c_pivot": {"merge": "pivot", "text_prior": "none"},
}


@pytest.mark.parametrize("prior", ["ranked", "all"])
@pytest.mark.parametrize("name", RECORDED)
def test_keys_and_values(name, prior):
    data = load(FOLDER / f"{name}.npz")
    keys, n = data["K"], data["K"].shape[1]
    kind = torch.full((n,), int(Kind.TEXT))
    kind[data["image_start"] :][: data["image_len"]] = int(Kind.CONTENT)
    heavy, recent = int(n * data["hh_ratio"]), int(n * data["recent_ratio"])
    method = LOOKM(**{"text_prior": prior, "recent": recent / (heavy + recent)} | RECORDED[name])
    values = keys.flip(-1) / 2
    extras = {"received": Extra(data["attn_colsum"][:, None], 0)}
    entries = Entries(
        keys, values, kind, torch.arange(n), torch.ones(n, dtype=torch.bool), heavy + recent, extras=extras
    )
    answer = method(entries, method.score(entries)).check()
    assert answer.m == data["out_len"] == heavy + recent
    torch.testing.assert_close(answer.apply(keys), data["K_out"], **CLOSE)
    torch.testing.assert_close(answer.apply(values)[..., :32], data["V_out_ch0to31"], **CLOSE)
