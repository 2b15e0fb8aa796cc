"""Products that skip zeros, against float64; shapes that fill neither panels nor blocks are among them."""

import pytest
import torch

from tests.which_engine import COMPILED, NARROW, chosen, threads
from vggkit.engines import kernels


def matrices(rows, depth, columns, is_transposed=(False, False)):
    torch.manual_seed(rows + depth)
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    a[torch.rand(rows, depth) < 0.75] = 0
    a[1], a[:, 2] = 0, 0
    return [(m.t().contiguous().t() if turned else m) for m, turned in zip((a, b), is_transposed, strict=True)]


@pytest.mark.parametrize("name", [COMPILED, NARROW])
@pytest.mark.parametrize("is_transposed", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(128, 256, 1024), (33, 300, 1100), (700, 41, 1027)])
def test_it_is_the_product_for_any_number_of_threads(name, rows, depth, columns, is_transposed):
    a, b = matrices(rows, depth, columns, is_transposed)
    exact = a.double() @ b.double()
    with chosen(name):
        with threads(1):
            alone = kernels.sparse_product(a, b)
        with threads(3):
            together = kernels.sparse_product(a, b)
    assert (alone - exact).norm() < 1e-6 * exact.norm()
    assert torch.equal(alone, together)


@pytest.mark.parametrize("name", [COMPILED])
def test_what_is_not_finite_is_seen(name):
    a, b = matrices(64, 64, 1024)
    a[3, 5], a[8, 60], b[60, 7] = torch.nan, 1, torch.inf
    with chosen(name):
        product = kernels.sparse_product(a, b)
    assert product[3].isnan().all()
    assert product[8, 7].isinf()
    assert product[[0, 1, 2, 4]].isfinite()[:, 8:].all()


@pytest.mark.parametrize("name", [COMPILED])
def test_it_is_not_taken_where_it_does_not_pay(name):
    a, b = matrices(64, 64, 1024)
    with chosen(name):
        assert kernels.sparse_product(a, b) is not None
        assert kernels.sparse_product(torch.ones(64, 64), b) is None
        assert kernels.sparse_product(a[:16], b) is None
        assert kernels.sparse_product(a, b[:, :1000]) is None
        assert kernels.sparse_product(a.double(), b.double()) is None
