"""The engine for CUDA GPUs: its kernels against torch (also without a GPU, by Triton's interpreter), and whole steps."""

import copy
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
kernels = pytest.importorskip("vggkit.engines.triton_kernels", reason="needs Triton", exc_type=ImportError)

from vggkit import VGG, Architecture, Recipe, accelerate, train  # noqa: E402
from vggkit.engines import gpu  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def exact():
    """float32 products are float32, and the same each time."""
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("shape", [(2, 8, 6, 7), (1, 80, 5, 4), (3, 130, 2, 2)])
@pytest.mark.parametrize("relu", [False, True])
def test_pool_and_the_way_back(shape, relu):
    x = last(torch.randn(shape, device=DEVICE))
    leaf = x.clone().requires_grad_()
    expected = F.max_pool2d(leaf, 2)
    expected = F.relu(expected) if relu else expected
    y, codes = kernels.pool(x, relu, keeps_codes=True)
    assert torch.equal(y, expected)
    dy = last(torch.randn_like(y))
    expected.backward(dy)
    dx, sums = kernels.gate_backward(dy, codes, *shape[2:])
    assert torch.equal(dx, leaf.grad)
    torch.testing.assert_close(sums, leaf.grad.sum((0, 2, 3)))
    rectified = F.relu(x)
    dx, sums = kernels.gate_backward(x, rectified, *shape[2:])
    assert torch.equal(dx, x * (x > 0))
    torch.testing.assert_close(sums, dx.sum((0, 2, 3)))


@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
@pytest.mark.parametrize("outputs", [16, 24, 80])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_first_convolution_and_its_gradients(inputs, outputs, pool, relu):
    dtype, tolerance = (torch.bfloat16, 0.02) if GPU else (torch.float32, 1e-4)
    x = torch.randn(2, inputs, 7, 6, device=DEVICE)
    weight = torch.randn(outputs, inputs, 3, 3, device=DEVICE).to(dtype)
    bias = torch.randn(outputs, device=DEVICE)
    leaves = [tensor.double().requires_grad_() for tensor in (weight, bias)]
    expected = F.conv2d(x.to(dtype).double(), *leaves, padding=1)
    expected = F.max_pool2d(expected, 2) if pool else expected
    expected = F.relu(expected) if relu else expected
    y, codes = kernels.image_convolution(x, weight, bias, relu, pool, keeps_codes=True)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    dy = last(torch.randn_like(y))
    expected.backward(dy.double())
    if not (relu or pool):
        return
    gradients = kernels.image_weight_gradient(x, dy, codes if pool else y)
    for ours, leaf in zip(gradients, leaves, strict=True):  # a tie may go another way: compared by their norms
        assert (ours - leaf.grad).norm() <= 3 * tolerance * leaf.grad.norm()


def test_what_is_not_a_number_passes_through():
    x = torch.zeros(1, 16, 4, 4, device=DEVICE)
    x[0, 3, 1, 0] = float("nan")
    y, _ = kernels.pool(last(x), relu=True, keeps_codes=False)
    assert y.isnan().sum() == 1
    image = torch.zeros(1, 1, 4, 4, device=DEVICE)
    image[0, 0, 1, 1] = float("nan")
    y, _ = kernels.image_convolution(image, torch.ones(16, 1, 3, 3, device=DEVICE), None, True, True, False)
    assert y.isnan().all()


@pytest.mark.skipif(GPU, reason="computes in float32, where a GPU's kernels take bfloat16")
@pytest.mark.parametrize(("text", "size"), [("1x16 2x16", 8), ("1x16k5 1x24+lrn", 9), ("2x16_bn", 8)])
def test_fused_layers_have_the_plain_gradients(text, size, monkeypatch):
    monkeypatch.setattr(gpu, "why_no_kernels", lambda: "")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    plain = VGG(Architecture.parse(text, image_size=size, hidden=(), num_classes=3)).double()
    fused = copy.deepcopy(plain).float()
    x = torch.randn(2, 3, size, size)
    y = x
    from vggkit.engines.accelerate import run_layers

    for block in list(fused)[: len(fused.architecture.blocks)]:
        y = run_layers(list(block), y, gpu)
    fused[len(fused.architecture.blocks) :](y).square().sum().backward()
    plain(x.double()).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg16", "vgg11_bn", "vgg16c", "vgg11_lrn"])
@pytest.mark.parametrize("batch_size", [1, 40])
def test_inference_is_as_exact_as_torchs_own_in_bfloat16(name, batch_size):
    net = VGG(Architecture.parse(name, num_classes=10, image_size=64, hidden=(256,))).eval().cuda()
    fast = accelerate(net)

    def check(x):
        exact = copy.deepcopy(net).double()(x.double())
        with torch.autocast("cuda", torch.bfloat16):
            bound = (net(x) - exact).norm()
        y = fast(x)
        assert y.dtype == torch.float32
        assert (y - exact).norm() < 2 * bound < 0.1 * exact.norm()

    for _ in range(3):  # as it comes, captured, replayed
        check(x := torch.randn(batch_size, 3, 64, 64, device="cuda"))
    for parameter in net.parameters():  # a captured pass follows its weights
        parameter.mul_(1.1)
    check(x)
    net.load_state_dict({key: value * 0.9 for key, value in net.state_dict().items()}, assign=True)
    check(x)
    taps = fast.features(x, ["conv2_1", "pool1"])  # of which a norm is folded into one pass and not into the other
    theirs = net.features(x, ["conv2_1", "pool1"])
    assert all((taps[name] - theirs[name]).norm() / theirs[name].norm() < 1e-2 for name in theirs)
    check(x)


@needs_gpu
@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 32},
        {"architecture": "2x16 1x32", "optimizer": "sgd", "momentum": 0.9, "cutmix": 0.5, "average": 0.1},
    ],
)
def test_a_captured_run_is_the_eager_one_bit_for_bit_and_resumes(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.named(
        "quick", data="fashion-mnist-sample", epochs=2, head="flatten", dropout=0.5, hidden=(64,), **options
    )
    weights = {}
    for engine in ("fast", "eager"):
        monkeypatch.setenv("VGGKIT_ENGINE", engine)
        weights[engine] = state_of(train(recipe, out=engine, progress=False))
    assert all(torch.equal(weights["fast"][key], weights["eager"][key]) for key in weights["fast"])
    monkeypatch.setenv("VGGKIT_ENGINE", "fast")
    monkeypatch.setattr("vggkit.training.epochs.evaluate", stopping_once())
    first = train(recipe, out="broken", progress=False)
    assert first.stopped_by is not None
    again = state_of(train(recipe, resume="broken", progress=False))
    assert all(torch.equal(weights["fast"][key], again[key]) for key in again)


def stopping_once():
    from vggkit.training.evaluate import evaluate

    calls = []

    def evaluating(*arguments):
        calls.append(1)
        return None if len(calls) == 1 else evaluate(*arguments)

    return evaluating


def state_of(run):
    return {key: value.clone() for key, value in run.net.state_dict().items()}


@needs_gpu
def test_a_run_that_diverges_stops_before_the_update(tmp_path):
    from vggkit.errors import DivergedError

    recipe = Recipe.named(
        "quick", data="fashion-mnist-sample", epochs=2, optimizer="sgd", learning_rate=1e6, warmup=0.0
    )
    with pytest.raises(DivergedError, match="expected a finite loss"):
        train(recipe, out=tmp_path / "run", progress=False)


@needs_gpu
def test_an_older_card_and_another_engine_compute_in_float32(monkeypatch):
    net = nn.Sequential(VGG(Architecture.parse("1x16", image_size=8, hidden=())).block1).cuda()
    x = torch.randn(2, 3, 8, 8, device="cuda")
    assert torch.equal(accelerate(net, "torch")(x), net(x))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert torch.equal(accelerate(net)(x), net(x))
