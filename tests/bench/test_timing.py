"""Taking turns: everything runs once a round, in orders that differ and repeat; ratios are worked out as they should."""

from contextlib import nullcontext
from itertools import pairwise

from foveate.bench.times.timing import Times, interleaved, kept_memory, quartiles


def turns(rounds, warmup=1):
    ran = []
    work = {name: lambda name=name: nullcontext(lambda: ran.append(name)) for name in "abcd"}
    found = interleaved(work, rounds, warmup=warmup)
    assert {name: len(times.wall) for name, times in found.items()} == dict.fromkeys("abcd", rounds)
    return ["".join(ran[i : i + 4]) for i in range(0, len(ran), 4)]


def test_every_round_runs_everything_once_in_another_order():
    rounds = turns(20)
    assert len(rounds) == 21 and all(sorted(each) == list("abcd") for each in rounds)
    before = {(x, y) for each in rounds for x, y in pairwise(each)}
    assert len(before) == 12, "everything follows everything else at some time"
    assert turns(20) == rounds, "two runs compare alike"


def test_memory_is_given_back_also_after_an_error():
    for _ in range(2):
        with kept_memory() as kept:
            assert isinstance(kept, bool)
    try:
        with kept_memory():
            raise KeyError
    except KeyError:
        pass


def test_ratios_and_spread():
    one, other = Times([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]), Times([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert one.over(other) == 2.0 and one.over(other, "cpu") == 0.5
    assert one.spread(other) == (2.0, 2.0)
    assert quartiles([3.0]) == (3.0, 3.0) and quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_a_machine_that_slows_down_changes_no_ratio():
    one, other = Times([3.0, 6.0, 15.0]), Times([1.0, 2.0, 5.0])
    assert one.over(other) == 3.0 and one.spread(other) == (3.0, 3.0)
