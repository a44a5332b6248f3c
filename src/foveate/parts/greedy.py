"""Choosing one token after another, each the best beside those already chosen.

Every function picks k distinct tokens, gives ties to the lowest index, and keeps what the picks so far mean for the others
up to date instead of computing it anew. ``select.spread`` is another of the kind.

On a CPU some of them pick through NumPy: on rows this short the calls are most of a step, and NumPy's cost less. What they
compute, and in which order, is the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TINY = 1e-5  # share of a token's squared length below which it counts as a copy of what is picked; float32 gives 1e-7
STRIP = 128  # rows that are summed at a time
LOOK = 16  # bounds that lazy greedy looks at first; any number gives the same answer


def volume(similarity: Tensor, quality: Tensor, k: int) -> Tensor:
    """Greedy MAP of a determinantal point process with the kernel q_i S_ij q_j (Chen et al., arXiv:1709.05135).

    Each pick adds most to the volume that the picked tokens span: its quality squared, times the part of it that is new.
    That part follows from one more row of a Cholesky factor per pick, O(n k) each. Where nothing new is left among the
    tokens, what was picked is forgotten, and the next round starts on the others: first every distinct token, then copies.

    Args:
        similarity: (n, n) of unit length: symmetric, positive semi-definite, ones on the diagonal.
        quality: (n,) >= 0.
        k: 1 <= k <= n.

    Returns:
        (k,) distinct indices in the order they were picked.
    """
    similarity, weight = similarity.detach().float(), quality.detach().float().square()
    pick = _volume_on_cpu if similarity.is_cpu else _volume_on_device
    return pick(similarity, weight, k)


def _volume_on_device(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """:func:`volume` of weights (n,), without a transfer to the host."""
    n = len(similarity)
    factor = similarity.new_zeros(k, n)  # rows of the Cholesky factor, one for each pick
    here = torch.zeros(k, dtype=similarity.dtype, device=similarity.device)  # 1 for picks of the present round
    new = torch.ones_like(weight)  # (n,) squared length of the part of each token that is new, 0 for picked tokens
    fresh = torch.ones_like(weight)  # what that is at the start of a round: 1, or 0 for picked tokens
    some, picked = new > TINY, []
    for t in range(k):
        one = torch.where(some, weight * new, -1).argmax(0, keepdim=True)
        row = similarity.index_select(0, one)[0]
        if t:
            row = row - (factor[:t].index_select(1, one)[:, 0] * here[:t]) @ factor[:t]
        row = torch.mul(row, new.index_select(0, one).rsqrt(), out=factor[t])
        here[t] = 1
        fresh.index_fill_(0, one, 0)
        new = torch.addcmul(new, row, row, value=-1).index_fill_(0, one, 0)
        some = new > TINY
        left = some.any()  # otherwise another round begins
        here *= left
        new = torch.where(left, new, fresh)
        some |= ~left & (fresh > 0)
        picked.append(one)
    return torch.cat(picked)


def _volume_on_cpu(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """The same picks through NumPy, but for what rounds otherwise there: torch's product, and its sum in one step."""
    factor = similarity.new_zeros(k, len(similarity))
    rows, weights, factors = similarity.numpy(), weight.numpy(), factor.numpy()
    left = torch.ones_like(weight)
    new, fresh = left.numpy(), np.ones_like(weights)
    picked = np.empty(k, dtype=np.int64)
    for t in range(k):
        picked[t] = one = np.where(new > TINY, weights * new, -1).argmax()
        row = factors[t]
        row[:] = rows[one]
        if t:
            row -= (torch.from_numpy(factors[:t, one].copy()) @ factor[:t]).numpy()
        row *= 1 / np.sqrt(new[one])
        left.addcmul_(factor[t], factor[t], value=-1)
        new[one] = fresh[one] = 0
        if not (new > TINY).any():  # another round begins
            factor[: t + 1] = 0
            new[:] = fresh
    return torch.from_numpy(picked)


def marginal(similarity: Tensor, importance: Tensor, k: int, balance: float, together: int = 1) -> Tensor:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): important, and unlike what is picked.

    The first pick is the most important token; every further one has the largest ``balance`` times importance minus
    (1 - ``balance``) times its similarity to the most similar picked token.

    Args:
        similarity: (n, n).
        importance: (n,) on the scale of the similarities.
        k: 1 <= k <= n.
        balance: in [0, 1]; 1 looks at importance alone.
        together: picks per step, the first step included; those of one step do not see each other.

    Returns:
        (k,) distinct indices, step by step.
    """
    score, worth = importance, balance * importance
    off = torch.zeros_like(importance)  # infinity for picked tokens
    nearest: Tensor | None = None
    picked: list[Tensor] = []
    left = k
    while left:
        few = min(together, left)
        one = score.argmax(0, keepdim=True) if few == 1 else score.sort(descending=True, stable=True).indices[:few]
        row = similarity.index_select(0, one).amax(0)
        nearest = row if nearest is None else torch.maximum(nearest, row)
        off.index_fill_(0, one, torch.inf)
        score = worth - (1 - balance) * nearest - off
        picked.append(one)
        left -= few
    return torch.cat(picked)


def cover(similarity: Tensor, k: int, weight: Tensor | None = None, floor: float = -1.0) -> Tensor:
    """Greedy facility location: tokens to one of which every token is similar. Lazy, and equal to plain greedy.

    A token's gain is by how much it raises the similarity of all tokens to their nearest picked one, times its weight. It
    can only shrink as others are picked, so an old gain is a bound: only tokens at the top of the list of bounds are
    looked at anew, until the best of them is above every bound that was not. Similarities are first rounded to steps of
    2^-20, and summed in float64, so that sums are exact in any order: lazy and plain greedy agree to the last tie.

    Args:
        similarity: (n, n) symmetric, in [-1, 1]; overwritten.
        k: 1 <= k <= n.
        weight: (n,) >= 0; ones when None.
        floor: similarity that every token starts from while nothing is picked. -1 counts all of it; from 0, what is
            unlike a token does not count as serving it badly, but as not serving it.

    Returns:
        (k,) distinct indices in the order they were picked.
    """
    similarity = similarity.detach().float()
    weight = (torch.ones_like(similarity[0]) if weight is None else weight.detach()).double()
    # First bounds: sums in float32, a little too large; in strips short enough for the processor's cache.
    strips = similarity.split(STRIP)
    rough = torch.cat([(strip.add_(12).sub_(12).clamp(min=floor) - floor).sum(1) for strip in strips])
    pick = _cover_on_cpu if similarity.is_cpu else _cover_on_device
    return pick(similarity, k, weight, floor, rough.double() * weight * 1.001)


def _cover_on_device(similarity: Tensor, k: int, weight: Tensor, floor: float, bound: Tensor) -> Tensor:
    """The picks of :func:`cover` from rounded similarities and first bounds (n,), which are overwritten."""
    nearest = torch.full_like(similarity[0], floor)  # of every token to the picked ones
    room = torch.empty_like(similarity[:LOOK], dtype=torch.float64)  # used again and again: allocating costs more

    def gains(tokens: Tensor) -> Tensor:
        level = [
            torch.maximum(similarity.index_select(0, some), nearest, out=room[: len(some)]).sum(1)
            for some in tokens.split(LOOK)
        ]
        return (torch.cat(level) - nearest.sum(dtype=torch.float64)) * weight[tokens]

    picked: list[Tensor] = []
    while len(picked) < k:
        many = LOOK
        while True:
            old, top = bound.topk(min(many, len(bound)))
            top = top.sort().values
            bound[top] = torch.where(bound[top].isneginf(), -torch.inf, gains(top))  # picked tokens stay out
            best = bound.argmax(0, keepdim=True)
            gain, least = torch.cat([bound[best], old[-1:]]).tolist()
            if gain <= 0:  # nothing is gained any more, now or later
                return torch.cat([*picked, bound.isfinite().nonzero()[: k - len(picked), 0]])
            if gain > least or many >= len(bound):
                break
            many *= 2
        picked.append(best)
        nearest = torch.maximum(nearest, similarity.index_select(0, best)[0])
        bound[best] = -torch.inf
    return torch.cat(picked)


def _cover_on_cpu(similarity: Tensor, k: int, weight: Tensor, floor: float, bound: Tensor) -> Tensor:
    """The same picks through NumPy, where a look is cheap enough to find first which bounds the best gain has to beat."""
    rows, weights, bounds = similarity.numpy(), weight.numpy(), bound.numpy()
    nearest = np.full_like(rows[0], floor)
    room = np.empty_like(rows[:STRIP])
    wide = torch.empty(room.shape, dtype=torch.float64)  # torch turns and adds float64 quicker
    level, held = torch.from_numpy(room), torch.from_numpy(nearest)

    def look(tokens: np.ndarray) -> None:
        before = nearest.sum(dtype=np.float64)
        for start in range(0, len(tokens), STRIP):
            some = tokens[start : start + STRIP]
            rows.take(some, 0, out=room[: len(some)], mode="clip")  # NumPy buffers `out` in other modes
            total = torch.maximum(level[: len(some)], held, out=wide[: len(some)]).sum(1).numpy()
            bounds[some] = (total - before) * weights[some]

    picked: list[int] = []
    few = min(LOOK, len(bounds))
    while len(picked) < k:
        some = bounds.argpartition(-few)[-few:]
        some = some[bounds[some] > -np.inf]  # picked tokens stay out
        gain, old = -np.inf, np.ones(len(bounds), dtype=bool)
        while len(some):
            look(some)
            old[some] = False
            gain = max(gain, bounds[some].max())
            some = ((bounds >= gain) & old).nonzero()[0]
            if len(some) > STRIP:
                some = some[bounds[some].argpartition(-STRIP)[-STRIP:]]
        best = int(bounds.argmax())
        if gain <= 0:  # nothing is gained any more, now or later
            picked += np.isfinite(bounds).nonzero()[0][: k - len(picked)].tolist()
            break
        picked.append(best)
        np.maximum(nearest, rows[best], out=nearest)
        bounds[best] = -np.inf
    return torch.tensor(picked)


def apart(similarity: Tensor, first: Tensor, k: int, total: bool) -> Tensor:
    """Tokens unlike each other, from a given first one.

    Args:
        similarity: (n, n) symmetric.
        first: (1,) index to begin with.
        k: 1 <= k <= n.
        total: True for max-sum diversity, where every pick has the smallest sum of similarities to those before it;
            False for k-centre, where it has the smallest similarity to the most similar of them.

    Returns:
        (k,) distinct indices in the order they were picked.
    """
    load, picked = similarity.index_select(0, first)[0], [first]
    off = torch.zeros_like(load).index_fill_(0, first, torch.inf)  # infinity for picked tokens
    for _ in range(k - 1):
        one = (load + off).argmin(0, keepdim=True)
        row = similarity.index_select(0, one)[0]
        load = load + row if total else torch.maximum(load, row)
        off.index_fill_(0, one, torch.inf)
        picked.append(one)
    return torch.cat(picked)


def farthest(x: Tensor, first: Tensor, k: int) -> Tensor:
    """Farthest-point sampling: every pick is farthest, in Euclidean distance, from the nearest one before it. O(n d k).

    Args:
        x: (n, d) in float32 at least.
        first: (1,) index to begin with.
        k: 1 <= k <= n.

    Returns:
        (k,) distinct indices in the order they were picked.
    """
    picked, far = [first], torch.full_like(x[:, 0], torch.inf)
    for _ in range(k - 1):
        far = torch.minimum(far, (x - x.index_select(0, picked[-1])).square_().sum(1))
        far.index_fill_(0, picked[-1], -1)  # squares are not below 0: once picked, never again
        picked.append(far.argmax(0, keepdim=True))
    return torch.cat(picked)
