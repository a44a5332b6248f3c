"""EmbedLens, against the authors' function. ``test_recorded.py`` says what the recordings are."""

from recorded import index, load, recordings

from foveate.methods.embedlens import ALIVE, EmbedLens
from foveate.tokens import Extra, View


@recordings("embedlens_dead")
def test_tokens_of_a_class_go_first(path):
    data = load(path)
    x, removed = data["embeds"], sorted(index(data["removed"]))
    method = EmbedLens(dead=tuple(index(data["target_ids"])), nearest=data["top_k"])
    view = View(x, len(x) - len(removed), extras={"vocabulary": Extra(data["vocab"])})
    labels = method.classes(method.look(view)[1])
    assert index((labels != ALIVE).nonzero()[:, 0]) == removed
    assert sorted(set(range(len(x))) - set(index(method(view).anchor))) == removed
