import torch

from foveate.methods.cmai import CMAI
from foveate.tokens import Extra, View


def view() -> View:
    """Two words, three image tokens, one head. The first looks at token 0, the second at token 2, but listens to the first."""
    among = torch.tensor([[[1.0, 0.0], [0.9, 0.1]]])
    image = torch.tensor([[[0.6, 0.3, 0.1], [0.0, 0.2, 0.8]]])
    extras = {"text_text": Extra(among), "text_rows": Extra(image)}
    return View(torch.zeros(3, 2), 3, extras=extras, layer=2, depth=8)


def test_focus_is_what_those_one_listens_to_look_at():
    score = CMAI().score(view())
    torch.testing.assert_close(score, torch.tensor([[0.6, 0.3, 0.1], [0.54, 0.29, 0.17]]))


def test_the_least_looked_at_are_hidden():
    assert CMAI(focus=0.34)(view()).hidden.tolist() == [[False, True, True], [False, True, True]]
    assert CMAI(focus=0.67)(view()).hidden.tolist() == [[False, False, True], [False, False, True]]
    assert not CMAI(focus=1.0)(view()).hidden.any()
    assert CMAI(focus=0.01)(view()).hidden.sum() == 4, "one stays"
