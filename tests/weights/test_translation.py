"""Everybody's weights give everybody's numbers. Oracles: the peers themselves, and Keras's layout in plain NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.peers import peer
from vggkit import Architecture
from vggkit.networks.vgg import VGG
from vggkit.weights.containers import Stored
from vggkit.weights.files import _load_foreign
from vggkit.weights.translation import NETWORKS, entries, preprocessing_of

FAMILY = NETWORKS["torchvision"]


def filled(build):
    """The network that `build` makes, with weights that keep the scale, drawn fast; statistics that are not 0 and 1."""
    with torch.device("meta"):
        net = build()
    net.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.5, 0.5, generator=generator)
                module.num_batches_tracked.fill_(3)
    return net


def ours(state):
    """Our network of a state dict, through everything but the file."""
    net, metadata = _load_foreign({k: Stored(tuple(t.shape), lambda t=t: t) for k, t in state.items()})
    return net.eval(), metadata


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def assert_equal_logits(net, theirs, *sizes):
    generator = torch.Generator().manual_seed(1)
    exact = [(torch.float64, 1, 1e-12)] * (len(sizes) > 1)  # of one network: a gigabyte each
    for dtype, images, tolerance in [(torch.float32, 2, 1e-5), *exact]:
        net, theirs = net.to(dtype), theirs.to(dtype)
        for size in sizes:
            x = torch.randn(images, 3, *size, generator=generator, dtype=dtype)
            assert relative_error(net(x), theirs(x)) < tolerance


@pytest.mark.parametrize("name", FAMILY)
def test_torchvisions_weights_give_torchvisions_logits(name):
    torchvision = peer("torchvision")
    theirs = filled(lambda: torchvision.models.get_model(name))
    net, metadata = ours(theirs.state_dict())
    assert metadata["source"] == f"torchvision/{name}"
    assert net.architecture.name == name
    sizes = [(32, 32), (75, 100), (224, 224)] if name == "vgg11_bn" else [(64, 64)]
    assert_equal_logits(net, theirs, *sizes)


@pytest.mark.parametrize("name", FAMILY)
def test_timms_weights_give_timms_logits(name):
    timm = peer("timm")
    theirs = filled(lambda: timm.create_model(name))
    net, metadata = ours(theirs.state_dict())
    assert metadata["source"] == f"timm/{name}"
    # Above 224, timm's first fully connected layer slides as a convolution; below, its map is stretched.
    sizes = [(32, 32), (75, 100), (224, 224), (256, 300)] if name == "vgg11" else [(64, 64)]
    assert_equal_logits(net, theirs, *sizes)


def test_other_channels_and_classes_of_the_peers_are_found_in_their_files():
    torchvision, timm = peer("torchvision"), peer("timm")
    theirs = filled(lambda: torchvision.models.vgg11(num_classes=7))
    net, metadata = ours(theirs.state_dict())
    assert net.architecture.num_classes == 7
    assert '"class 6"' in metadata["classes"]
    theirs = filled(lambda: timm.create_model("vgg11", in_chans=1, num_classes=5))
    net, _ = ours(theirs.state_dict())
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert relative_error(net(x), theirs(x)) < 1e-5


def numpy_vgg(weights, images, convs):
    """VGG in NumPy in Keras's own layout: images and maps (batch, height, width, channels), kernels HWIO.

    `weights` by Keras's names; `convs` is how many convolutions each block has.
    """
    x = images
    for block, count in enumerate(convs, start=1):
        for number in range(1, count + 1):
            kernel = weights[f"block{block}_conv{number}/kernel"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            height, width = x.shape[1:3]
            x = (
                sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))
                + weights[f"block{block}_conv{number}/bias"]
            )
            x = np.maximum(x, 0)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    x = x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"], 0)
    return x @ weights["predictions/kernel"] + weights["predictions/bias"]


def keras_weights(architecture, seed=0):
    """Random weights by Keras's names, in its shapes written out by hand."""
    rng = np.random.default_rng(seed)
    weights, channels = {}, architecture.in_channels

    def draw(name, *shape):
        bound = (6 / np.prod(shape[:-1])) ** 0.5
        weights[f"{name}/kernel"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights[f"{name}/bias"] = rng.uniform(-0.1, 0.1, shape[-1]).astype(np.float32)

    for block, part in enumerate(architecture.blocks, start=1):
        for number in range(1, part.num_convs + 1):
            draw(f"block{block}_conv{number}", 3, 3, channels, part.channels)
            channels = part.channels
    features = channels * architecture.map_size**2
    for name, width in zip(("fc1", "fc2"), architecture.hidden, strict=True):
        draw(name, features, width)
        features = width
    draw("predictions", features, architecture.num_classes)
    return weights


def test_keras_weights_give_what_numpy_gives_in_keras_own_layout():
    """At the width of a hand, with a 3x2-fold map, so that height, width and channel order all matter."""
    arch = Architecture.parse("vgg16/16", num_classes=5, image_size=96, hidden=(24, 16))
    weights = keras_weights(arch)
    net = VGG(arch).double().eval()
    table = entries("keras", arch)
    assert {entry.name for entry in table.values()} == set(weights)
    for entry in table.values():
        assert entry.shape == weights[entry.name].shape
    net.load_state_dict({k: entry.to_ours(torch.from_numpy(weights[entry.name])) for k, entry in table.items()})
    images = np.random.default_rng(1).standard_normal((2, 96, 96, 3))
    expected = numpy_vgg(weights, images, [part.num_convs for part in arch.blocks])
    with torch.no_grad():
        got = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-12


def test_each_source_has_its_publishers_preprocessing():
    x = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for source in ("torchvision", "timm"):
        expected = [(0.1 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.9 - 0.406) / 0.225]
        got = preprocessing_of(source).normalize(x)[0, :, 0, 0]
        torch.testing.assert_close(got, torch.tensor(expected))
    for source in ("keras", "caffe"):  # blue, green, red in [0, 255], the means taken off
        expected = [0.9 * 255 - 103.939, 0.5 * 255 - 116.779, 0.1 * 255 - 123.68]
        got = preprocessing_of(source).normalize(x)[0, :, 0, 0]
        torch.testing.assert_close(got, torch.tensor(expected))
