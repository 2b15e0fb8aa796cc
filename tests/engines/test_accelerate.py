"""Any network through the engine against the plain one: outputs, gradients, statistics, taps, and what it leaves alone."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

from tests.strategies import architectures
from tests.which_engine import COMPILED, chosen, needs_kernels
from vggkit import VGG, Architecture, accelerate, alexnet, describe_engine, vgg_block
from vggkit.engines.accelerate import Accelerated

SMALL = architectures(max_channels=6, max_image_size=24, max_blocks=3)


def outcome(net, x):
    """What a training pass leaves: the output, every gradient, every buffer."""
    torch.manual_seed(1)  # of dropout
    leaf = x.clone().requires_grad_(x.shape[1] > 4)
    y = net(leaf)
    y.square().sum().backward()
    plain = net.net if isinstance(net, Accelerated) else net
    return [y.detach(), *(p.grad for p in plain.parameters()), *plain.buffers()]


@settings(deadline=None, max_examples=30)
@given(SMALL, st.booleans(), st.booleans())
def test_any_architecture_is_the_plain_one_up_to_rounding(arch, training, recompute):
    torch.manual_seed(0)
    plain = VGG(arch).train(training).double()  # of which no layer is taken, but all are put in another order
    x = torch.randn(2, arch.in_channels, arch.image_size, arch.image_size, dtype=torch.float64)
    before = x.clone()
    fast = accelerate(copy.deepcopy(plain), recompute=recompute)
    for ours, theirs in zip(outcome(fast, x), outcome(plain, x), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", [COMPILED, "torch"])
@pytest.mark.parametrize("text", ["1x16 2x32 1x48k5", "1x16+lrn 1x32", "2x16_bn"])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_is_the_plain_networks(name, text, recompute):
    torch.manual_seed(0)
    plain = VGG(Architecture.parse(text, image_size=24, hidden=(33,), num_classes=5, dropout=0.0))
    x = torch.randn(6, 3, 24, 24)
    with chosen(name):
        ours = outcome(accelerate(copy.deepcopy(plain), recompute=recompute), x)
    for a, b in zip(ours, outcome(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@needs_kernels
@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: VGG("vgg11_bn/4"), lambda: alexnet(in_channels=3), lambda: blocks()])
def test_inference_is_the_plain_networks_in_float64(make):
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(3, 3, 224, 224)
    exact = copy.deepcopy(net).double()(x.double())
    y = accelerate(net)(x)
    assert (y - exact).norm() / exact.norm() < 1e-5
    assert not torch.equal(y, net(x)), "it did not take another way"


def blocks():
    """A network of one's own, out of blocks."""
    return nn.Sequential(vgg_block(1, 3, 16), vgg_block(2, 16, 32), nn.Flatten(), nn.Linear(32 * 56 * 56, 7))


@needs_kernels
@torch.no_grad()
def test_features_are_the_plain_networks():
    torch.manual_seed(0)
    net = VGG(Architecture.parse("vgg16/4", image_size=64, hidden=(32, 32))).eval()
    x = torch.randn(2, 3, 64, 64)
    names = ["fc7", "conv1_1", "relu3_3", "pool2", "conv4_2", "pool5"]
    ours, theirs = accelerate(net).features(x, names), net.features(x, names)
    assert list(ours) == names
    for name in names:
        assert (ours[name] - theirs[name]).norm() / theirs[name].norm() < 1e-5, name
    assert (ours["conv4_2"] < 0).any()


def test_it_is_on_the_same_parameters_and_says_what_runs_what():
    net = VGG(Architecture.parse("1x16 1x20", image_size=8, hidden=()))
    fast = accelerate(net)
    assert fast.net is net
    assert {id(p) for p in fast.parameters()} == {id(p) for p in net.parameters()}
    choices = {choice.layer: choice for choice in describe_engine(fast)}
    assert choices["block2.conv2_1"].engine == "torch"
    assert choices["block2.conv2_1"].reason == "channels are no multiple of 16"
    assert choices["fc3"].engine == "vggkit"
    assert choices["block1.pool1"].reason == "torch's own is as fast"
    assert {choice.engine for choice in describe_engine(accelerate(net, "torch"))} == {"torch"}


@needs_kernels
def test_what_it_does_not_know_is_torchs():
    """A parametrised or pruned layer, a subclass, a network of another type."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    pruned = nn.Conv2d(16, 16, 3, padding=1)
    prune.l1_unstructured(pruned, "weight", 0.5)
    normed = spectral_norm(nn.Conv2d(16, 16, 3, padding=1)).eval()
    for layers in (nn.Sequential(Doubled(16, 16, 3, padding=1)), nn.Sequential(pruned), nn.Sequential(normed)):
        assert describe_engine(accelerate(layers))[0].engine == "torch"
        assert torch.equal(accelerate(layers)(x), layers(x))
    own = Own(nn.Conv2d(16, 16, 3, padding=1))
    assert torch.equal(accelerate(own)(x), own(x))
    assert "expected a VGG or an nn.Sequential, got Own" in describe_engine(accelerate(own))[0].reason


@needs_kernels
@torch.no_grad()
def test_what_kernels_cannot_read_is_torchs():
    net = vgg_block(1, 16, 16)
    x = torch.randn(2, 16, 8, 8)
    fast = accelerate(net)
    assert fast(x[:0]).shape == (0, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), net(x))
    with pytest.raises(RuntimeError, match="to have 16 channels"):
        fast(torch.randn(2, 32, 8, 8))
    net.double()
    assert torch.equal(fast(x.double()), net(x.double()))


def test_compiling_it_compiles_the_plain_network():
    net = VGG(Architecture.parse("1x16 1x16", image_size=8, hidden=())).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(accelerate(net), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))
    taps = torch.compile(accelerate(net).features, backend="eager", fullgraph=True)
    assert torch.equal(taps(x, ["relu2_1"])["relu2_1"], net.features(x, ["relu2_1"])["relu2_1"])


def test_inference_starts_without_torchs_compiler():
    """Whose import takes a second and 80 MB."""
    program = """if True:
        import sys, torch, vggkit
        vggkit.accelerate(vggkit.VGG("vgg11/64").eval())(torch.zeros(1, 3, 224, 224))
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_wrong_shape_gets_the_networks_own_line():
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, 32, 32\), got \[1, 1, 32, 32\]"):
        accelerate(VGG(Architecture.parse("1x4", image_size=32)))(torch.zeros(1, 1, 32, 32))


def test_another_engine_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="expected an engine of fast, eager, torch, got 'fastest'"):
        accelerate(vgg_block(1, 1, 4), "fastest")
    monkeypatch.setenv("VGGKIT_ENGINE", "no")
    with pytest.raises(ValueError, match="got 'no'"):
        accelerate(vgg_block(1, 1, 4))


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"^expected a torch module, got 'vgg11', try accelerate\(VGG\('vgg11'\)\)$"):
        accelerate("vgg11")
    with pytest.raises(ValueError, match="^expected an accelerated network, got 3, try describe_engine"):
        describe_engine(3)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_recomputing_changes_no_bit_and_goes_back_twice(norm):
    arch = Architecture.parse("1x6+lrn 2x8k3,1 3x8", image_size=20, hidden=(20,), num_classes=5, norm=norm)
    torch.manual_seed(0)
    plain = VGG(arch)
    found = []
    for recompute in (False, True):
        net = copy.deepcopy(plain)
        torch.manual_seed(1)
        loss = accelerate(net, recompute=recompute)(torch.ones(4, 3, 20, 20)).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([*(p.grad for p in net.parameters()), *net.buffers()])
        assert all(b == 1 for name, b in net.named_buffers() if name.endswith("num_batches_tracked"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
