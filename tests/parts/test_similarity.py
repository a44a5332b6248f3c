import pytest
import torch

from foveate.errors import MethodError
from foveate.parts.similarity import cosines, gram, unit


def test_cosines_with_rows_of_zeros():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-8.0, 6.0], [0.0, 0.0], [30.0, 40.0]])
    expected = torch.tensor(
        [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]], dtype=torch.float32
    )
    torch.testing.assert_close(cosines(x), expected)


def test_half_precision_is_widened():
    rows, zero = unit(torch.tensor([[300.0, 400.0]], dtype=torch.float16))  # the square does not fit float16
    assert rows.dtype == torch.float32 and zero is None
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_without_direction(bad):
    x = torch.ones(4, 2)
    x[2, 1] = bad
    with pytest.raises(MethodError, match="1 of 4 rows hold NaN or infinity"):
        cosines(x)


@pytest.mark.parametrize("n", [1, 2, 383, 384, 500, 960])
def test_half_a_product_is_the_product(n):
    x = torch.randn(n, 24, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(gram(x), x @ x.mT, rtol=1e-5, atol=1e-5)
