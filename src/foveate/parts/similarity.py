"""Cosines, with the two things that go wrong said once: rows of zeros, and rows that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MethodError

BLOCK = 192  # rows of a matrix product of rows with themselves that are multiplied at a time


def unit(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rows (n, d) at length one, in float32 at least; rows of zeros stay zero.

    Returns:
        The rows, and (n,) True where a row is zero, or None if none is: the check for both faults is one read.

    Raises:
        MethodError: if a row's length is NaN or infinite, because it has no direction.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    length = wide.norm(dim=1)
    zero = length == 0
    bad, none = torch.stack([(~length.isfinite()).sum(), zero.sum()]).tolist()
    if bad:
        raise MethodError(
            f"{bad} of {len(x)} rows hold NaN or infinity",
            hint="look for overflow in the features (fp16 outside autocast?) or a broken picture",
        )
    return wide / length.masked_fill(zero, 1)[:, None], zero if none else None


def gram(x: Tensor) -> Tensor:
    """(n, n) dot product of every pair of rows (n, d), in new memory.

    On a CPU blocks of rows are multiplied with the rows from there on, and what is left of them is mirrored: little more
    than half of the product. A block is wide enough for the library to round as in the whole product. A GPU is quicker with
    the whole product than with many parts.
    """
    n = len(x)
    if not x.is_cpu or x.requires_grad or n < 2 * BLOCK:
        return x @ x.mT
    product = x.new_empty(n, n)
    for start in range(0, n - BLOCK + 1, BLOCK):
        stop = start + BLOCK if n - start >= 2 * BLOCK else n  # the last block takes what would be a narrow one
        torch.mm(x[start:stop], x[start:].mT, out=product[start:stop, start:])
        product[stop:, start:stop] = product[start:stop, stop:].mT
    return product


def cosines(x: Tensor) -> Tensor:
    """(n, n) cosine of every pair of rows (n, d), one matrix product at most, see :func:`gram`.

    A row of zeros has cosine 0 with every other row, and 1 with other rows of zeros: they are copies of one another.
    """
    rows, zero = unit(x)
    product = gram(rows)
    return product if zero is None else product + torch.outer(zero, zero)


def nearest_later(x: Tensor, rows: int = 256) -> Tensor:
    """(n,) highest cosine of every row (n, d) to a later one; minus infinity for the last. Half a matrix product.

    Args:
        x: (n, d).
        rows: to compare at a time; any number gives the same but for rounding.
    """
    units, zero = unit(x)
    best = units.new_full((len(x),), -torch.inf)
    for start in range(0, len(x) - 1, rows):
        stop = min(start + rows, len(x) - 1)
        product = units[start:stop] @ units[start + 1 :].mT  # column j is row start + 1 + j
        if zero is not None:
            product += torch.outer(zero[start:stop], zero[start + 1 :])
        here = product[:, : stop - start]
        here.masked_fill_(torch.ones_like(here, dtype=torch.bool).tril(-1), -torch.inf)
        best[start:stop] = product.amax(1)
    return best
