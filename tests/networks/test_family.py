"""Everything that can be asked for works, all the way: built, counted, drawn, run both ways, saved and loaded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vggkit import (
    VGG,
    Architecture,
    Baseline,
    accelerate,
    as_network,
    build,
    costs,
    draw,
    load_weights,
    save_weights,
)
from vggkit.design.notation import FAMILY


@st.composite
def members(draw):
    """A member of the family, narrow, with a head, channels and size of its own; and an input that it takes."""
    name = draw(st.sampled_from(sorted(FAMILY))) + draw(st.sampled_from(["", "_bn"])) + "/64"
    head = draw(st.sampled_from(["flatten", "adaptive", "conv", "gap"]))
    arch = Architecture.parse(
        name,
        in_channels=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(1, 12)),
        image_size=draw(st.integers(32, 100)),
        hidden=() if head == "gap" else tuple(draw(st.lists(st.integers(1, 9), max_size=3))),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        head=head,
        pooled_size=draw(st.integers(1, 4)) if head in ("adaptive", "conv") else 7,
    )
    sides = st.just(arch.image_size) if head == "flatten" else st.integers(32, 100)
    height, width = draw(sides), draw(sides)
    return arch, (2, arch.in_channels, height, width)


@torch.no_grad()
def assert_same(loaded, net, x):
    assert loaded.architecture == net.architecture
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    # One input channel has two memory formats at once, and two orders of summation.
    torch.testing.assert_close(loaded(x), net.eval()(x), rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(members(), st.booleans())
def test_every_configuration_head_channel_count_and_size(tmp_path_factory, member, recompute):
    arch, shape = member
    counted = costs(arch, 2)
    torch.manual_seed(0)
    net = VGG(arch).to(memory_format=torch.channels_last)
    assert sum(p.numel() for p in net.parameters()) == counted.total.parameters
    assert draw([arch]).startswith("<svg")
    x = torch.randn(shape, requires_grad=True)
    logits = accelerate(net, recompute=recompute)(x)
    assert logits.shape == (2, arch.num_classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert x.grad.shape == x.shape
    path = tmp_path_factory.mktemp("family") / "model.safetensors"
    save_weights(path, net, {})
    assert_same(load_weights(path)[0], net, x)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["lenet", "alexnet"]), st.integers(1, 4), st.integers(1, 12), st.integers(65, 80))
def test_every_baseline(tmp_path_factory, name, in_channels, num_classes, image_size):
    arch = as_network(name, in_channels=in_channels, num_classes=num_classes, image_size=image_size)
    with torch.device("meta"):
        net = build(arch)
    assert sum(p.numel() for p in net.parameters()) == costs(arch).total.parameters
    assert draw([arch]).startswith("<svg")
    if name == "lenet":
        net = build(arch).to(memory_format=torch.channels_last)
        x = torch.randn(2, in_channels, image_size, image_size)
        net(x).sum().backward()
        path = tmp_path_factory.mktemp("family") / "model.safetensors"
        save_weights(path, net, {})
        assert_same(load_weights(path)[0], net, x)


def books_lenet():
    """The chapter's layers, of torch's own modules."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip


def books_alexnet():
    return nn.Sequential(
        nn.Conv2d(1, 96, kernel_size=11, stride=4, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(96, 256, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(256, 384, kernel_size=3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, kernel_size=3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Flatten(), nn.Linear(6400, 4096), nn.ReLU(), nn.Dropout(p=0.5),
        nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(p=0.5), nn.Linear(4096, 10),
    )  # fmt: skip


@pytest.mark.parametrize(("name", "books", "size"), [("lenet", books_lenet, 28), ("alexnet", books_alexnet, 224)])
def test_the_baselines_are_the_books(name, books, size):
    torch.manual_seed(0)
    ours, theirs = build(Baseline.named(name), "torch"), books()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(1, 1, size, size)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(1)  # the same dropout
        outputs.append(net(x))
    assert torch.equal(*outputs)
    assert [layer.__class__.__name__ for layer in ours] == [layer.__class__.__name__ for layer in theirs]


def test_a_baseline_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected an image_size for alexnet from 65 to 65536, got 64"):
        as_network("alexnet", image_size=64)
    with pytest.raises(ValueError, match="expected in_channels from 1 to 65536, got 0"):
        as_network("lenet", in_channels=0)
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 1, 28, 28\), got \[1, 1, 32, 32\]"):
        build(Baseline.named("lenet"))(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="one of lenet, alexnet, got 'resnet'"):
        Baseline.named("resnet")


def test_cs_third_convolutions_are_1x1():
    """The paper's C, out of torch's own parts."""
    arch = Architecture.parse("C", num_classes=3, image_size=32, hidden=())
    net = VGG(Architecture.parse("vgg16c/32", num_classes=3, image_size=32, hidden=())).eval()
    assert arch.blocks[2].kernel_sizes == (3, 3, 1)
    x = torch.randn(2, 3, 32, 32)
    y = x
    for block in range(1, 6):
        for conv in range(1, 3 if block < 3 else 4):
            module = net.get_submodule(f"block{block}.conv{block}_{conv}")
            size = 1 if conv == 3 else 3
            assert module.weight.shape[-2:] == (size, size)
            y = nn.functional.conv2d(y, module.weight, module.bias, padding=size // 2).relu()
        y = nn.functional.max_pool2d(y, 2)
    torch.testing.assert_close(net(x), net.fc6(y.flatten(1)))
