"""Winograd's way against torch's own convolution in float64, and through whole networks."""

import copy
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from tests.which_engine import COMPILED, NARROW, chosen, needs_kernels, threads
from vggkit import VGG, Architecture, vgg_block
from vggkit.data import fashion_mnist
from vggkit.engines import kernels
from vggkit.engines.convolution import Conv2d, _Convolution, engine
from vggkit.engines.fully_connected import Linear, fast_cpu, use_fast_cpu
from vggkit.networks.vgg import _forward_block

ENGINES = [COMPILED, "plain"]
CASES = st.tuples(
    st.integers(1, 3),  # images
    st.sampled_from([1, 2, 3, 16, 48, 144]),  # inputs
    st.sampled_from([16, 48, 80]),  # outputs
    st.integers(1, 19),  # height
    st.integers(1, 19),  # width
    st.booleans(),  # ReLU
    st.booleans(),  # pool
)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch):
    def choose(name: str) -> None:
        monkeypatch.setenv("VGGKIT_ENGINE", name)
        engine.cache_clear()

    yield choose
    engine.cache_clear()


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


@pytest.mark.parametrize("name", [*ENGINES, NARROW])
@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_a_layer_and_its_gradients_are_torchs_in_float64(name, case) -> None:
    _, inputs, _, height, width, relu, pool = case
    if pool and min(height, width) < 2:
        return
    if name == "plain" or inputs % 16 == 0:
        dtype = torch.float64 if name == "plain" else torch.float32
        limit = 1e-12 if name == "plain" else 1e-5
    else:
        dtype, limit = torch.float32, 1e-6
    x, weight, bias = drawn(case, dtype)
    with chosen(name):
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
        leaves[0].requires_grad_(name == "plain" or inputs % 16 == 0)
        y = _Convolution.apply(leaves[0], leaves[1], leaves[2], relu, pool)
        dy = torch.randn_like(y)
        y.backward(dy)
    if dtype == torch.float32:
        assume(not is_near_a_tie(case, x, weight, bias))
    expected = by_torch(case, x, weight, bias, dy)
    assert relative(y, expected[0]) < limit
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        if leaf.requires_grad:
            assert relative(leaf.grad, gradient) < limit


@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True), (False, True)])
def test_gradcheck(choose, relu, pool) -> None:
    choose("plain")
    x, weight, bias = (v.requires_grad_() for v in drawn((2, 3, 2, 5, 6), torch.float64))
    assert torch.autograd.gradcheck(lambda *v: _Convolution.apply(v[0], v[1], v[2], relu, pool), (x, weight, bias))


@needs_kernels
@pytest.mark.parametrize("case", [(5, 64, 48, 30, 17, True, True), (5, 3, 32, 30, 17, True, False)])
def test_threads_change_no_bit(choose, case) -> None:
    choose("compiled")
    x, weight, bias = drawn(case)
    results = []
    for number in (1, 2, 3):
        leaves = [value.clone().requires_grad_(bool(i) or case[1] > 4) for i, value in enumerate((x, weight, bias))]
        with threads(number):
            y = _Convolution.apply(leaves[0], leaves[1], leaves[2], *case[5:])
            y.square().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@needs_kernels
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_what_is_not_finite_stays_so(choose, channels, value, relu, pool) -> None:
    choose("compiled")
    x, weight, bias = drawn((1, channels, 16, 8, 8))
    x[0, 2, 5, 4] = value
    weight.abs_().requires_grad_()
    y = _Convolution.apply(x, weight, bias, relu, pool)
    assert not y[:, :, 5 // (1 + pool), 4 // (1 + pool)].isfinite().any()
    y.sum().backward()
    assert not weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("network", ["vgg16", "vgg19", "vgg16_bn"])
def test_logits_and_top_1_of_real_images(choose, name, network) -> None:
    choose(name)
    torch.manual_seed(0)
    net = VGG(Architecture.parse(network, in_channels=1, num_classes=10, image_size=64, hidden=(256,))).eval()
    images = torch.from_numpy(fashion_mnist.load(fashion_mnist.SAMPLE_NAME).test_images[:16]).unsqueeze(1) / 255
    images = F.interpolate(images, (64, 64), mode="bilinear")
    exact = copy.deepcopy(net).double()
    use_fast_cpu(net)
    with torch.no_grad():
        logits, expected = net(images), exact(images.double())
    assert (logits - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert not torch.equal(logits, VGG.forward(unfast(net), images)), "it did not take another way"


def unfast(net: VGG) -> VGG:
    use_fast_cpu(net, on=False)
    return net


@needs_kernels
def test_the_kernels_are_given_only_what_they_can_read(choose) -> None:
    """Whatever else a program does to torch or to the layer; torch decides what it takes."""
    choose("compiled")
    conv = Conv2d(16, 32, 3, padding=1)
    conv.is_fast = True
    x = torch.randn(2, 16, 8, 8)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert torch.allclose(conv(x), expected, atol=1e-4)
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.allclose(conv(x), expected, atol=1e-4)
    with pytest.raises(RuntimeError, match="to have 16 channels"):
        conv(torch.randn(2, 32, 8, 8))
    conv.bias = torch.nn.Parameter(torch.arange(64.0)[::2])
    assert torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-4)
    conv.weight, conv.bias = torch.nn.Parameter(conv.weight[:24]), torch.nn.Parameter(conv.bias[:24])  # pruned by hand
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
    for shape in ((1, 16, 0, 8), (1, 16, 8, 0)):
        assert not Conv2d(16, 16, 3, padding=1).pays(torch.zeros(shape))
    wide = torch.randn(1, 3, 2, 180_000)
    image = Conv2d(3, 16, 3, padding=1)
    assert torch.allclose(image.fused(wide), F.conv2d(wide, image.weight, image.bias, padding=1), atol=1e-4)


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
def test_a_norm_that_does_not_fit_is_torchs(choose, given) -> None:
    choose("compiled")
    options = {name: given[name] for name in ("bias", "track_running_stats") if name in given}
    norm = torch.nn.BatchNorm2d(given.get("num_features", 32), **options).eval()
    for name in ("running_mean", "running_var"):
        if name in given:
            setattr(norm, name, given[name])
    block = torch.nn.Sequential(Conv2d(16, 32, 3, padding=1, bias=False), norm, torch.nn.ReLU())
    x = torch.randn(2, 16, 8, 8)
    try:
        expected = block(x)
    except RuntimeError as error:
        expected = str(error)
    use_fast_cpu(block)
    if isinstance(expected, str):
        with pytest.raises(RuntimeError, match=re.escape(expected)):
            _forward_block(block, x, is_watched=False)
    else:
        torch.testing.assert_close(_forward_block(block, x, is_watched=False), expected, rtol=1e-4, atol=1e-4)


class Odd(Tensor):
    """A tensor that is twice what it holds."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        twice = tree_map(lambda a: 2 * a.as_subclass(Tensor) if isinstance(a, Odd) else a, (args, kwargs or {}))
        return function(*twice[0], **twice[1])


@needs_kernels
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:Sparse CSR")
@torch.no_grad()
def test_what_is_watched_or_not_what_it_seems_is_torchs(choose, monkeypatch) -> None:
    choose("compiled")
    conv, linear = Conv2d(16, 32, 3, padding=1), Linear(16, 8)
    x, row = torch.randn(1, 16, 8, 8), torch.randn(2, 16)
    direction = torch.randn_like(x)
    ways = {
        "vmap": lambda: torch.func.vmap(conv)(x[None]),
        "vmap of a linear": lambda: torch.func.vmap(linear)(row[None]),
        "jit": lambda: torch.jit.trace(linear, row)(row + 1),
        "forward mode": lambda: torch.func.jvp(conv, (x,), (direction,))[1],
        "dual": lambda: dual(conv, x, direction),
        "mkldnn": lambda: conv(x.to_mkldnn()).to_dense(),
        "csr": lambda: torch.func.functional_call(linear, {"weight": linear.weight.to_sparse_csr()}, (row,)),
        "subclass": lambda: torch.func.functional_call(linear, {"weight": linear.weight.as_subclass(Odd)}, (row,)),
        "counted": lambda: counted(conv, x),
    }
    for name, way in ways.items():
        use_fast_cpu(torch.nn.ModuleList([conv, linear]), on=False)
        expected = way()
        use_fast_cpu(torch.nn.ModuleList([conv, linear]))
        torch.testing.assert_close(way(), expected, msg=name)
    wide = Conv2d(kernels.MAX_CHANNELS + 16, 16, 3, padding=1)
    assert not wide.pays(torch.zeros(1, wide.in_channels, 4, 4))
    normed = torch.nn.utils.parametrizations.spectral_norm(Conv2d(16, 16, 3, padding=1))
    copied = copy.deepcopy(normed)
    normed.is_fast = True
    assert torch.equal(normed(x), copied(x))


def dual(function, x: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent


def counted(conv: Conv2d, x: Tensor) -> Tensor:
    with FlopCounterMode(display=False) as counter:
        conv(x)
    return torch.tensor(counter.get_total_flops())


@needs_kernels
def test_gradients_may_be_negative_views(choose) -> None:
    choose("compiled")
    conv = Conv2d(16, 16, 3, padding=1)
    y = conv.fused(torch.randn(1, 16, 4, 4))
    dy = torch.ones_like(y)
    (bias,) = torch.autograd.grad(y, conv.bias, torch._neg_view(dy))
    torch.testing.assert_close(bias, torch.full((16,), -16.0))


@needs_kernels
def test_recomputing_says_that_it_is_not_the_same_way(choose) -> None:
    choose("compiled")
    net = VGG(Architecture.parse("1x16", image_size=8, hidden=()), checkpoint=True)
    with fast_cpu(net):
        loss = net(torch.randn(2, net.architecture.in_channels, 8, 8)).sum()
    with pytest.raises(RuntimeError, match="expected the fast way on or off as in the forward pass"):
        loss.backward()


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
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 10_000_000,) * 2)
        try:
            kernels.convolve(x, weight, None, None, False, False, False)
        except MemoryError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "vggkit_convolve got no memory for what it keeps in the cache\n", done.stderr


@pytest.mark.parametrize("name", ENGINES)
def test_saved_tensors_may_come_back_in_other_strides(choose, name) -> None:
    choose(name)
    x, weight, bias = (value.requires_grad_() for value in drawn((2, 16, 16, 8, 8)))
    gradients = []
    for pack in (lambda t: t, lambda t: t.contiguous()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = _Convolution.apply(x, weight, bias, True, True)
        gradients.append(torch.autograd.grad(y.sum(), (x, weight, bias)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ENGINES)
def test_what_comes_behind_may_write_into_it(choose, name) -> None:
    choose(name)
    layers = torch.nn.Sequential(Conv2d(256, 256, 3, padding=1), torch.nn.MaxPool2d(2), torch.nn.ReLU(inplace=True))
    use_fast_cpu(layers)
    x = torch.randn(48, 256, 8, 8, requires_grad=True)
    assert layers[0].pays(x)
    layers(x).sum().backward()
    _forward_block(layers, x, is_watched=False).sum().backward()


@pytest.mark.parametrize(
    ("name", "channels", "images", "side", "pays"),
    [
        pytest.param("compiled", 16, 1, 4, True, marks=needs_kernels),
        pytest.param("compiled", 16, 1, 2, False, marks=needs_kernels),  # as it is defined it takes as much
        pytest.param("compiled", 24, 1, 4, False, marks=needs_kernels),
        ("plain", 256, 48, 8, True),
        ("plain", 256, 47, 8, False),
        ("plain", 240, 48, 8, False),
        ("plain", 256, 768, 2, False),
        ("torch", 128, 48, 8, False),
    ],
)
def test_a_layer_takes_the_way_that_was_measured_to_pay(choose, name, channels, images, side, pays) -> None:
    choose(name)
    assert Conv2d(channels, channels, 3, padding=1).pays(torch.randn(images, channels, side, side)) == pays


def test_the_fast_way_ends_as_it_was() -> None:
    net = vgg_block(1, 16, 16)
    with fast_cpu(net):
        with fast_cpu(net):
            pass
        assert net[0].is_fast
    assert not net[0].is_fast
