import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

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
    with pytest.raises(ValueError, match="expected weights that are finite"):
        accelerate(broken, head="int8")


@pytest.mark.parametrize(("head", "value"), [("int8", torch.inf), ("bfloat16", -torch.inf), ("bfloat16", 3.4e38)])
def test_weights_that_are_not_finite_once_rounded_are_refused(head, value):
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].weight.data[0, 0] = value
    with pytest.raises(ValueError, match=f"expected weights that are finite in {head}"):
        accelerate(net, head=head)


def test_large_sums_and_least_weights_are_kept():
    net = nn.Sequential(nn.Linear(300, 2, bias=False))
    net[0].weight.data.fill_(2e38)  # whose sum is infinite
    net[0].weight.data[1] = 1.9e-43  # whose 127th is one step of the least float32
    weight = accelerate(net, head="int8").net[0].weight
    assert (weight == 127).all()


@pytest.mark.parametrize("head", BITS)
@pytest.mark.parametrize("value", [1e29, 1e38])
def test_large_inputs_give_what_float32_gives(head, value):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(300, 20)), torch.full((2, 300), 0.0)
    x[0, 5], x[1] = value, torch.randn(300)
    with torch.no_grad():
        expected, got = net(x), accelerate(net, head=head)(x)
    assert expected.isfinite().all()
    torch.testing.assert_close(got[0], expected[0], rtol=0.01, atol=value / 1000)
    torch.testing.assert_close(got[1], expected[1], rtol=0.01, atol=0.02)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("head", BITS)
def test_a_trace_has_the_answers_of_the_plain_path(head):
    fast, x = accelerate(network(), head=head), torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(fast, x, check_trace=False)
        torch.testing.assert_close(traced(x.flip(3)), fast(x.flip(3)), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("head", BITS)
def test_layers_that_others_read_or_compute_are_left_to_torch(head):
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), *(nn.Linear(8, 8) for _ in range(3)))
    net.append(nn.Linear(8, 0)).append(nn.Linear(0, 8))
    prune.l1_unstructured(net[1], "weight", 0.5)
    nn.utils.parametrizations.weight_norm(net[2])
    net.eval()
    fast, x = accelerate(net, head=head), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast.net[:4](x), net[:4](x), atol=0.02, rtol=0.02)
        torch.testing.assert_close(fast(x), net(x))
    assert [type(layer).__name__ for layer in fast.modules() if "NarrowLinear" in type(layer).__name__] == [
        "NarrowLinear"
    ]


def test_a_narrow_network_is_neither_narrowed_again_nor_given_float32_weights():
    net = network()
    fast = accelerate(net, head="int8")
    for head in BITS:
        with pytest.raises(ValueError, match="expected a network in float32, got one with a narrow head"):
            accelerate(fast.net, head=head)
    with pytest.raises(ValueError, match=r"fc3.weight: expected weights in torch.int8, .* got torch.float32"):
        fast.net.load_state_dict(net.state_dict(), strict=False)
    other = accelerate(network(), head="int8")
    other.net.load_state_dict(fast.net.state_dict())
    assert torch.equal(other.net.fc3.weight, fast.net.fc3.weight)
