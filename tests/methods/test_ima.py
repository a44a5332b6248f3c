import torch

from foveate.methods.ima import IMA
from foveate.tokens import View


def skipping(method: IMA, depth: int) -> list[int]:
    view = [View(torch.zeros(3, 2), 3, layer=layer, depth=depth) for layer in method.stops(depth)]
    return [one.layer for one in view if (work := method(one)) is not None and not work.feeds]


def test_every_second_layer_but_the_first_and_the_last():
    assert skipping(IMA(), 8) == [2, 4, 6]
    assert skipping(IMA(), 32) == list(range(2, 31, 2)), "strictly between 0 and 31, and even"
    assert skipping(IMA(interval=3), 8) == [3, 6]
    assert skipping(IMA(interval=1, spare=0), 3) == [0, 1, 2]
    assert skipping(IMA(), 2) == [], "no layer is between the first and the last"


def test_attention_goes_on():
    work = IMA()(View(torch.zeros(3, 2), 3, layer=2, depth=8))
    assert work is not None and work.attends
