import weakref

import pytest
import torch
from torch import nn

from vggkit import VGG, Architecture, accelerate, describe_engine
from vggkit.data.fashion_mnist import load
from vggkit.engines import kernels
from vggkit.engines.cpu import why_not_compiled

BITS = {"bfloat16": 2**-8, "int8": 1 / 254}
"""The largest error of a weight: of bfloat16 relative to it, of int8 to the largest of its row."""


def network(head="flatten", **options):
    torch.manual_seed(0)
    shape = {"image_size": 32, "in_channels": 1, "num_classes": 10, "hidden": (77, 40)}
    return VGG(Architecture.parse("1x16 1x32", head=head, **{**shape, **options})).eval()


@pytest.mark.parametrize("head", BITS)
@pytest.mark.parametrize("images", [1, 3, 8, 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 16), (101, 37), (7, 1), (1000, 9)])
def test_a_layer_is_the_product_with_its_rounded_weights(head, images, inputs, outputs):
    torch.manual_seed(images)
    layer, x = nn.Linear(inputs, outputs, bias=outputs != 9), torch.randn(images, inputs)
    fast = accelerate(nn.Sequential(layer), head=head)
    (narrow,) = fast.net
    weight = narrow.weight.double() * (1 if narrow.scale is None else narrow.scale.double()[:, None])
    largest = layer.weight.abs() if head == "bfloat16" else layer.weight.abs().amax(dim=1, keepdim=True)
    assert ((weight - layer.weight).abs() <= 1.001 * BITS[head] * largest).all()
    expected = x.double() @ weight.T + (0 if layer.bias is None else layer.bias.double())
    with torch.no_grad():
        torch.testing.assert_close(fast(x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast(x).double(), expected, atol=1e-5, rtol=1e-5)  # by torch, as gradients are on


@pytest.mark.parametrize("head", BITS)
def test_a_network_keeps_its_answers_and_shares_its_convolutions(head):
    net = network()
    fast = accelerate(net, head=head)
    x = torch.from_numpy(load("fashion-mnist-sample").test_images[:200, None]).float() / 255
    x = torch.nn.functional.pad(x, (2, 2, 2, 2))
    with torch.no_grad():
        expected, got = net(x), torch.cat([fast(one) for one in x.split(5)])
        features = fast.features(x[:2], ["relu2_1", "fc5"])
    error = (got - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.02
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= 0.97  # an untrained network is seldom sure
    torch.testing.assert_close(features["fc5"], got[:2])
    assert fast.net.block1.conv1_1.weight is net.block1.conv1_1.weight
    assert {choice.engine for choice in describe_engine(fast) if choice.layer.startswith("fc")} == {
        "torch" if why_not_compiled() else "vggkit"
    }
    whole = weakref.ref(net.fc3.weight)
    del net
    assert whole() is None


@pytest.mark.skipif(bool(why_not_compiled()), reason="no compiler")
def test_threads_decide_no_bit():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 333), torch.randn(50, 333).bfloat16()
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(kernels.fully_connected(x, weight, None))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_moved_and_converted_copies_still_answer():
    x = torch.rand(2, 1, 32, 32)
    for head in BITS:
        fast = accelerate(network(), head=head)
        with torch.no_grad():
            expected = fast(x)
            torch.testing.assert_close(fast.double()(x.double()).float(), expected, atol=1e-4, rtol=1e-4)
            fast.float()
            torch.testing.assert_close(fast(x), expected, atol=1e-4, rtol=1e-4)


def test_zeros_stay_zeros():
    net = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(net[0].weight)
    with torch.no_grad():
        assert torch.equal(accelerate(net, head="int8")(torch.ones(1, 4))[0], net[0].bias)


@pytest.mark.parametrize(
    ("net", "head", "message"),
    [
        (network(), "int4", "expected a head in float32, bfloat16, int8, got 'int4'"),
        (network("conv"), "int8", "expected fully connected layers to keep in int8, got a network without"),
        (3, "int8", "expected a torch module"),
    ],
)
def test_what_cannot_be_narrow_is_refused(net, head, message):
    with pytest.raises(ValueError, match=message):
        accelerate(net, head=head)
    broken = network()
    broken.fc4.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected finite weights"):
        accelerate(broken, head="int8")
