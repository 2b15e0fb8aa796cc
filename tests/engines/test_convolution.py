"""Winograd's way against torch's own convolution in float64, and through whole networks."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.which_engine import COMPILED, NARROW, chosen, needs_kernels, threads
from vggkit import VGG, Architecture, accelerate
from vggkit.data import fashion_mnist
from vggkit.engines import kernels
from vggkit.engines.convolution import Convolution, fused, is_faster

CASES = st.tuples(
    st.integers(1, 3),  # images
    st.sampled_from([1, 2, 3, 16, 48, 144]),  # inputs
    st.sampled_from([16, 48, 80]),  # outputs
    st.integers(1, 19),  # height
    st.integers(1, 19),  # width
    st.booleans(),  # ReLU
    st.booleans(),  # pool
)


def drawn(case, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    images, inputs, outputs, height, width = case[:5]
    torch.manual_seed(hash(case) % 2**31)
    x = torch.randn(images, inputs, height, width, dtype=dtype)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=dtype) / (9 * inputs) ** 0.5
    return x, weight, torch.randn(outputs, dtype=dtype)


def by_torch(case, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of x, weight and bias, in float64."""
    relu, pool = case[5:]
    inputs = [value.double().requires_grad_() for value in (x, weight, bias)]
    y = F.conv2d(*inputs, padding=1)
    y = F.max_pool2d(y, 2) if pool else y
    y = F.relu(y) if relu else y
    y.backward((dy if dy is not None else torch.ones_like(y)).double())
    return [y.detach(), *(value.grad for value in inputs)]


def is_near_a_tie(case, x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether rounding may decide which way a gradient goes, at ReLU or pool."""
    relu, pool = case[5:]
    y = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    if pool:
        windows = F.unfold(y.flatten(0, 1).unsqueeze(1), 2, stride=2).sort(dim=1, descending=True).values
        y = windows[:, 0]
        if ((y - windows[:, 1]) < 1e-5).any():
            return True
    return bool(relu and (y.abs() < 1e-5).any())


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b).norm() / b.norm().clamp(min=1e-30))


@pytest.mark.parametrize("name", [COMPILED, NARROW])
@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_a_layer_and_its_gradients_are_torchs_in_float64(name, case) -> None:
    _, inputs, _, height, width, relu, pool = case
    if pool and min(height, width) < 2:
        return
    limit = 1e-5 if inputs % 16 == 0 else 1e-6
    x, weight, bias = drawn(case)
    with chosen(name):
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
        leaves[0].requires_grad_(inputs % 16 == 0)
        y = Convolution.apply(leaves[0], leaves[1], leaves[2], relu, pool)
        dy = torch.randn_like(y)
        y.backward(dy)
    assume(not is_near_a_tie(case, x, weight, bias))
    expected = by_torch(case, x, weight, bias, dy)
    assert relative(y, expected[0]) < limit
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        if leaf.requires_grad:
            assert relative(leaf.grad, gradient) < limit


@needs_kernels
@pytest.mark.parametrize("case", [(5, 64, 48, 30, 17, True, True), (5, 3, 32, 30, 17, True, False)])
def test_threads_change_no_bit(case) -> None:
    x, weight, bias = drawn(case)
    results = []
    for number in (1, 2, 3):
        leaves = [value.clone().requires_grad_(bool(i) or case[1] > 4) for i, value in enumerate((x, weight, bias))]
        with threads(number):
            y = Convolution.apply(leaves[0], leaves[1], leaves[2], *case[5:])
            y.square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@needs_kernels
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_what_is_not_finite_stays_so(channels, value, relu, pool) -> None:
    x, weight, bias = drawn((1, channels, 16, 8, 8))
    x[0, 2, 5, 4] = value
    weight.abs_().requires_grad_()
    y = Convolution.apply(x, weight, bias, relu, pool)
    assert not y[:, :, 5 // (1 + pool), 4 // (1 + pool)].isfinite().any()
    y.sum().backward()
    assert not weight.grad.isfinite().all()


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_memory_that_is_not_there_is_an_error() -> None:
    program = """if True:
        import resource
        from pathlib import Path
        import torch
        from vggkit.engines import kernels
        torch.set_num_threads(1)
        x, weight = torch.zeros(1, 4096, 24, 24), torch.zeros(16, 4096, 3, 3)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        kernels.convolve(x[:, :16].contiguous(memory_format=torch.channels_last), weight[:, :16].contiguous(
            memory_format=torch.channels_last), None, None, False, False, False)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 1_000_000,) * 2)
        try:
            kernels.convolve(x, weight, None, None, False, False, False)
        except MemoryError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "vggkit_convolve got no memory for what it keeps in the cache\n", done.stderr


@needs_kernels
@pytest.mark.parametrize("network", ["vgg16", "vgg19", "vgg16_bn"])
def test_logits_and_top_1_of_real_images(network) -> None:
    torch.manual_seed(0)
    net = VGG(Architecture.parse(network, in_channels=1, num_classes=10, image_size=64, hidden=(256,))).eval()
    images = torch.from_numpy(fashion_mnist.load(fashion_mnist.SAMPLE_NAME).test_images[:16]).unsqueeze(1) / 255
    images = F.interpolate(images, (64, 64), mode="bilinear")
    exact = copy.deepcopy(net).double()
    with torch.no_grad():
        logits, expected = accelerate(net)(images), exact(images.double())
    assert (logits - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    assert torch.equal(logits.argmax(1), expected.argmax(1))


@needs_kernels
def test_the_kernels_are_given_only_what_they_can_read() -> None:
    """Whatever else a program does to torch or to the layer; torch decides what it takes."""
    conv = nn.Conv2d(16, 32, 3, padding=1)
    fast = accelerate(nn.Sequential(conv))
    x = torch.randn(2, 16, 8, 8)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert torch.allclose(fast(x), expected, atol=1e-4)
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.allclose(fast(x), expected, atol=1e-4)
    conv.bias = nn.Parameter(torch.arange(64.0)[::2])
    assert torch.allclose(fast(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-4)
    conv.weight, conv.bias = nn.Parameter(conv.weight[:24]), nn.Parameter(conv.bias[:24])  # pruned by hand
    assert torch.equal(fast(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    wide, image = torch.randn(1, 3, 2, 180_000), nn.Conv2d(3, 16, 3, padding=1)
    assert torch.allclose(fused(image, wide, None, False, False), image(wide), atol=1e-4)
    many = nn.Conv2d(kernels.MAX_CHANNELS + 16, 16, 3, padding=1)
    assert not is_faster(many, torch.zeros(1, many.in_channels, 4, 4))


@needs_kernels
@pytest.mark.parametrize(
    "given",
    [
        {"num_features": 1},
        {"num_features": 16},
        {"bias": False},
        {"running_mean": None, "running_var": None},
        {"running_var": torch.ones(32, dtype=torch.float64)},
        {"track_running_stats": False},
    ],
)
@torch.no_grad()
def test_a_norm_that_does_not_fit_is_torchs(given) -> None:
    options = {name: given[name] for name in ("bias", "track_running_stats") if name in given}
    norm = nn.BatchNorm2d(given.get("num_features", 32), **options).eval()
    for name in ("running_mean", "running_var"):
        if name in given:
            setattr(norm, name, given[name])
    block = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), norm, nn.ReLU())
    x = torch.randn(2, 16, 8, 8)
    try:
        expected = block(x)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            accelerate(block)(x)
    else:
        torch.testing.assert_close(accelerate(block)(x), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_gradients_may_be_negative_views() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    y = fused(conv, torch.randn(1, 16, 4, 4), None, False, False)
    (bias,) = torch.autograd.grad(y, conv.bias, torch._neg_view(torch.ones_like(y)))
    torch.testing.assert_close(bias, torch.full((16,), -16.0))


@needs_kernels
def test_saved_tensors_may_come_back_in_other_strides() -> None:
    x, weight, bias = (value.requires_grad_() for value in drawn((2, 16, 16, 8, 8)))
    gradients = []
    for pack in (lambda t: t, lambda t: t.contiguous()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = Convolution.apply(x, weight, bias, True, True)
        gradients.append(torch.autograd.grad(y.sum(), (x, weight, bias)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@needs_kernels
def test_what_follows_may_write_into_the_output() -> None:
    layers = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True))
    accelerate(layers)(torch.randn(4, 16, 8, 8, requires_grad=True)).sum().backward()


@needs_kernels
def test_what_does_not_pay_is_torchs() -> None:
    others = [
        {"out_channels": 24},
        {"padding": 0},
        {"stride": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"kernel_size": 5},
        {"dtype": torch.float64},
    ]
    for other in others:
        conv = nn.Conv2d(**{"in_channels": 16, "out_channels": 16, "kernel_size": 3, "padding": 1, **other})
        assert not is_faster(conv, torch.zeros(2, 16, 8, 8, dtype=conv.weight.dtype))
    conv = nn.Conv2d(16, 16, 3, padding=1)
    for shape in ((0, 16, 8, 8), (2, 16, 0, 8), (2, 16, 8, 0), (2, 16, 2, 2)):  # the last fills a quarter of its tile
        assert not is_faster(conv, torch.zeros(shape))
    assert is_faster(conv, torch.zeros(1, 16, 4, 4))
    image = nn.Conv2d(3, 16, 3, padding=1)
    assert is_faster(image, torch.zeros(2, 3, 8, 8))
    assert not is_faster(image, torch.zeros(2, 3, 8, 8, requires_grad=True))
