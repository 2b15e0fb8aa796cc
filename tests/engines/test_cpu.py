import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.which_engine import COMPILED, NARROW, chosen, needs_kernels, threads
from vggkit.engines import kernels
from vggkit.engines.cpu import FEW_IMAGES, run


def both(module, x, gradient):
    """Output and gradients of the fast way, and of torch's own in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        parameters = [p.detach().to(dtype).requires_grad_() for p in module.parameters()]
        if dtype == torch.float64:
            y = nn.functional.linear(leaf, *parameters)
        else:
            y, parameters = run(module, leaf), list(module.parameters())
        results.append([y, *torch.autograd.grad(y, [leaf, *parameters], gradient.to(dtype))])
    return results


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.booleans())
def test_the_fast_products_are_float64s(batch, inputs, outputs, bias, transposed):
    torch.manual_seed(batch)
    module = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(inputs, batch).t() if transposed else torch.randn(batch, inputs)
    for ours, exact in zip(*both(module, x, torch.randn(batch, outputs)), strict=True):
        # Of the norm, or of the terms of a sum that happens to be near zero.
        assert (ours.double() - exact).norm() < 1e-5 * max(exact.norm(), exact.numel() ** 0.5)


@pytest.mark.parametrize("name", [COMPILED, NARROW])
@settings(deadline=None, max_examples=60)
@given(st.integers(1, FEW_IMAGES), st.integers(1, 600), st.integers(1, 30), st.booleans(), st.booleans())
def test_few_images_without_gradients_are_float64s(name, batch, inputs, outputs, bias, transposed):
    torch.manual_seed(batch)
    module = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    x = torch.randn(inputs, batch).t() if transposed else torch.randn(batch, inputs)
    with chosen(name), torch.no_grad():
        y = run(module, x)
        assert y.is_contiguous()
        with threads(3):
            assert torch.equal(run(module, x), y)
    exact, size = (
        nn.functional.linear(*(None if v is None else f(v.double()) for v in (x, module.weight, module.bias)))
        for f in (torch.clone, torch.abs)
    )
    assert ((y.double() - exact).abs() <= 1e-6 * size).all()


@needs_kernels
@torch.no_grad()
def test_the_kernel_is_given_only_what_it_can_read(monkeypatch):
    module = nn.Linear(48, 8)
    x = torch.randn(2, 48)
    given = []
    monkeypatch.setattr(kernels, "fully_connected", lambda *tensors: given.append(tensors))
    run(module, x)
    assert len(given) == 1
    with torch.device("meta"):
        run(module, x)
    assert len(given) == 2
    run(module, torch.randn(FEW_IMAGES + 1, 48))
    with torch.enable_grad():
        run(module, x)
    with torch.autocast("cpu"):
        run(module, x)
    with pytest.raises(RuntimeError):
        run(module, torch.randn(2, 47))
    module.weight = nn.Parameter(module.weight[:6])  # pruned by hand
    module.bias = nn.Parameter(module.bias[:6])
    assert run(module, x).shape == (2, 6)
    module.weight = nn.Parameter(module.weight.double())
    with pytest.raises(RuntimeError):
        run(module, x)
    assert len(given) == 2


def test_inputs_that_need_no_gradient_get_none():
    module = nn.Linear(4, 3)
    run(module, torch.randn(2, 4)).sum().backward()
    assert module.weight.grad is not None
    module.weight.requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    run(module, x).sum().backward()
    torch.testing.assert_close(x.grad, module.weight.sum(dim=0).expand(2, 4))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999999])
def test_fast_dropout_drops_and_scales_as_dropout_does(p):
    module = nn.Dropout(p)
    torch.manual_seed(0)
    x = torch.full((1001, 997), 2.0, requires_grad=True)  # a count that four does not divide
    y = run(module, x)
    kept = y != 0
    # Five standard deviations of a binomial.
    assert abs(1 - kept.float().mean().item() - p) <= 5 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / (1 - p)), rtol=1e-3, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / 2)
    for quarter in range(4):  # each of the four values of a draw is as random as the others
        assert abs(kept.flatten()[quarter::4].float().mean().item() - (1 - p)) < 0.01
    torch.manual_seed(0)
    assert torch.equal(run(module, x), y)
    assert not torch.equal(run(module, x), y) or p in (0, 0.999999)
    assert torch.equal(run(module.eval(), x), x)
