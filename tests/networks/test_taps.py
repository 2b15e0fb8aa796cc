"""`VGG.features`: what a named layer puts out. The oracle runs the layers one after another by hand, out of place."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import architectures
from vggkit import VGG, Architecture


def one_after_another(net, x):
    """Every layer's output by name, each computed from a copy of the one before."""
    outputs = {}
    for name, child in net.named_children():
        for inner, layer in child.named_children() if isinstance(child, nn.Sequential) else [(name, child)]:
            layer = copy.deepcopy(layer)
            layer.inplace = False
            outputs[inner] = x = layer(x.clone())
    return outputs


@settings(deadline=None, max_examples=40)
@given(architectures(max_channels=6, max_image_size=24, max_blocks=3), st.data())
def test_every_layer_of_every_configuration(arch, data):
    torch.manual_seed(0)
    net = VGG(arch).eval()
    x = torch.randn(2, arch.in_channels, arch.image_size, arch.image_size)
    expected = one_after_another(net, x)
    assert list(expected) == [layer.name for layer in arch.layers()]
    names = data.draw(st.lists(st.sampled_from(list(expected)), min_size=1, max_size=5))
    got = net.features(x, names)
    assert list(got) == list(dict.fromkeys(names))
    for name, output in got.items():
        assert torch.equal(output, expected[name]), name


@pytest.fixture
def net():
    torch.manual_seed(0)
    return VGG(Architecture.parse("1x4 2x6_bn", in_channels=1, num_classes=3, image_size=16, hidden=(5,))).eval()


@pytest.fixture
def x():
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))


class Overwriting(nn.Module):
    """A layer of somebody's own that writes into its input."""

    def forward(self, x):
        return x.relu_()


def in_place(net):
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True


def with_layers_of_its_own(net):
    net.block1.relu1_1 = Overwriting()
    net.block2.relu2_1.forward = lambda x: x.relu_()


def with_a_hook_that_writes(net):
    net.block1.relu1_1.register_forward_pre_hook(lambda _module, inputs: (inputs[0].relu_(), None)[1])


@pytest.mark.parametrize("change", [in_place, with_layers_of_its_own, with_a_hook_that_writes])
def test_what_follows_cannot_write_into_a_tap(net, x, change):
    expected = one_after_another(net, x)
    change(net)
    for name, output in net.features(x, list(expected)).items():
        assert torch.equal(output, expected[name]), name
    assert (expected["bn1_1"] < 0).any()


def test_it_stops_at_the_deepest_layer(net, x):
    ran = []
    for name, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net.features(x, ["conv2_1", "relu1_1"])
    assert ran[-1] == "block2.conv2_1"
    assert "block2.bn2_1" not in ran
    assert not any(name.startswith("fc") for name in ran)


def test_gradients_flow_from_every_layer(net, x):
    for name in one_after_another(net, x):
        leaf = x.clone().requires_grad_()
        net.features(leaf, [name])[name].square().sum().backward()
        assert leaf.grad.abs().sum() > 0
    leaf = x.clone().requires_grad_()
    together = net.features(leaf, ["conv1_1", "pool2"])
    (together["conv1_1"].sum() + together["pool2"].square().sum()).backward()
    other = x.clone().requires_grad_()
    by_hand = one_after_another(net, other)
    (by_hand["conv1_1"].sum() + by_hand["pool2"].square().sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


class Taps(nn.Module):
    def __init__(self, net, names):
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x):
        return self.net.features(x, self.names)


def test_it_exports_and_compiles(net, x):
    names = ["conv1_1", "relu2_1", "pool2", "fc3"]
    expected = net.features(x, names)
    exported = torch.export.export(Taps(net, names), (x,)).module()
    compiled = torch.compile(Taps(net, names), backend="aot_eager", fullgraph=True)
    for run in (exported, compiled):
        got = run(x)
        assert list(got) == names
        for name in names:
            torch.testing.assert_close(got[name], expected[name])


def test_the_layers_of_blocks_take_any_size(net):
    x = torch.randn(1, 1, 21, 9)
    assert net.features(x, ["relu2_2"])["relu2_2"].shape == (1, 6, 10, 4)
    assert net.features(x[..., :2, :1], ["relu1_1"])["relu1_1"].shape == (1, 4, 2, 1)
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 1, 16, 16\), got \[1, 1, 21, 9\]"):
        net.features(x, ["fc3"])
    with pytest.raises(ValueError, match=r"\(batch, 1, height, width\), both from 4, got \[1, 1, 3, 9\]"):
        net.features(x[..., :3, :], ["pool2"])
    with pytest.raises(ValueError, match=r"\(batch, 1, height, width\), both from 2, got \[1, 3, 21, 9\]"):
        net.features(x.expand(1, 3, 21, 9), ["conv2_1"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["relu2_3"], "expected layers of 1x4 2x6_bn, got 'relu2_3', try relu2_2$"),
        (["pool9"], "got 'pool9', try pool2$"),
        (["layer4"], "got 'layer4', try "),
        ([], r"expected a list of layers, got \[\], try \['pool2'\]"),
        ("relu2_1", r"expected a list of layers, got 'relu2_1', try \['relu2_1'\]"),
    ],
)
def test_a_wrong_name_gets_the_nearest(net, x, layers, message):
    with pytest.raises(ValueError, match=message):
        net.features(x, layers)
