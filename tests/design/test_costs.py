from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.strategies import architectures, blocks
from vggkit import VGG, Architecture, ArchitectureError, Baseline, build, cli, costs, predict_step, training_memory

KNOWN = {
    "vgg11": (132_863_336, 7_609_090_048, 150),
    "vgg13": (133_047_848, 11_308_466_176, 156),
    "vgg16": (138_357_544, 15_470_264_320, 212),
    "vgg19": (143_667_240, 19_632_062_464, 268),
}
# By hand from the sums above: an LRN has no parameters; C has 1x1 in place of 3x3 in one convolution of 256 channels
# and two of 512; batch norm has two for each channel of each convolution.
OTHERS = {
    "A-LRN": 132_863_336,
    "C": 138_357_544 - 8 * (256 * 256 + 2 * 512 * 512),
    "vgg11_bn": 132_863_336 + 2 * (64 + 128 + 2 * 256 + 4 * 512),
    "vgg13_bn": 133_047_848 + 2 * 2 * (64 + 128 + 256 + 2 * 512),
    "vgg16_bn": 138_357_544 + 2 * (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512),
    "vgg19_bn": 143_667_240 + 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512),
}
TABLE_2 = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}  # of the paper, in millions


def test_the_known_counts():
    for name, (parameters, macs, receptive_field) in KNOWN.items():
        counted = costs(name)
        assert (counted.total.parameters, counted.total.macs) == (parameters, macs)
        pool5 = next(layer for layer in counted.layers if layer.name == "pool5")
        assert (pool5.receptive_field, pool5.stride) == (receptive_field, 32)
    assert {name: costs(name).total.parameters for name in OTHERS} == OTHERS
    assert {name: round(costs(name).total.parameters / 1e6) for name in TABLE_2} == TABLE_2


@pytest.mark.parametrize("head", ["adaptive", "conv"])
def test_the_published_heads_cost_what_the_flat_one_does_at_224(head):
    flat, other = (costs(Architecture.parse("vgg16", head=h)).total for h in ("flatten", head))
    assert (flat.parameters, flat.macs) == (other.parameters, other.macs)


def test_the_dense_evaluation_of_the_paper_grows_with_the_image():
    """At 384: a map of 12x12, in which fc6's 7x7 has 6x6 places, and so have fc7 and fc8."""
    counted = costs(Architecture.parse("vgg16", head="conv", image_size=384))
    shapes = {layer.name: layer.output_shape[1:] for layer in counted.layers}
    assert (shapes["fc6"], shapes["fc8"], shapes["avgpool"]) == ((4096, 6, 6), (1000, 6, 6), (1000, 1, 1))
    assert counted.total.parameters == 138_357_544
    assert counted.fully_connected.macs == 36 * (25088 * 4096 + 4096 * 4096 + 4096 * 1000)
    fc6 = next(layer for layer in counted.layers if layer.name == "fc6")
    assert (fc6.receptive_field, fc6.stride) == (404, 32)


def test_a_global_average_has_the_parameters_of_one_layer():
    assert costs(Architecture.parse("vgg16", head="gap")).fully_connected.parameters == 512 * 1000 + 1000


@pytest.mark.parametrize(("name", "percent"), [("vgg11", 92.8), ("vgg11/4", 98.7)])
def test_where_the_parameters_of_the_chapters_networks_are(name, percent):
    counted = costs(Architecture.parse(name, in_channels=1, num_classes=10))
    assert round(100 * counted.fully_connected.parameters / counted.total.parameters, 1) == percent


def test_the_parts_add_up():
    counted = costs(Architecture.parse("vgg16c_bn"), batch_size=3)
    for quantity in ("parameters", "macs", "activation_bytes", "weight_layers"):
        total = getattr(counted.total, quantity)
        assert total == sum(getattr(part, quantity) for part in counted.parts.values())
        assert total == getattr(counted.convolutional, quantity) + getattr(counted.fully_connected, quantity)
    assert list(counted.parts) == ["block1", "block2", "block3", "block4", "block5", "fc6", "fc7", "fc8"]
    assert counted.total.weight_layers == 16


@settings(deadline=None, max_examples=60)
@given(architectures(), st.integers(1, 300))
def test_costs_are_what_torch_counts(arch, batch_size):
    with torch.device("meta"):
        net = VGG(arch, init="torch").eval()
        x = torch.empty(batch_size, arch.in_channels, arch.image_size, arch.image_size)
    counted = costs(arch, batch_size)
    assert counted.total.parameters == sum(p.numel() for p in net.parameters())

    seen = {}
    for name, module in net.named_modules():
        if not isinstance(module, nn.Sequential):
            short = name.rpartition(".")[2]
            module.register_forward_hook(lambda _m, _i, out, short=short: seen.update({short: tuple(out.shape)}))
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert counter.get_total_flops() == 2 * counted.total.macs
    assert {layer.name: layer.output_shape for layer in counted.layers} == seen
    for layer in counted.layers:
        module = net.get_submodule(f"{layer.part}.{layer.name}" if layer.part[0] == "b" else layer.name)
        assert layer.parameters == sum(p.numel() for p in module.parameters())


@settings(deadline=None, max_examples=25)
@given(st.lists(blocks(max_channels=2), min_size=1, max_size=3).map(tuple))
def test_the_receptive_field_is_what_the_gradient_of_the_input_sees(drawn):
    """With positive weights and means in place of maxima, every pixel that can matter has a gradient."""
    small = costs(Architecture(drawn, 1, 1, 2 ** len(drawn), hidden=()))
    last = small.layers[-3]  # the last pool
    size = last.stride * (2 * (last.receptive_field // last.stride) + 3)
    arch = Architecture(drawn, 1, 1, size, hidden=())
    net = VGG(arch)
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    y, seen = x, {}
    for layer in net.double()[: len(drawn)].modules():
        if isinstance(layer, nn.Conv2d):
            y = layer(y) / 100
        elif isinstance(layer, nn.MaxPool2d):
            y = nn.functional.avg_pool2d(y, 2)
        else:
            continue
        middle = y.shape[-1] // 2
        (gradient,) = torch.autograd.grad(y[0, 0, middle, middle], x, retain_graph=True)
        (columns,) = gradient[0, 0].any(dim=0).nonzero(as_tuple=True)
        seen[len(seen)] = (columns[-1] - columns[0] + 1).item()
        assert columns[0] > 0
        assert columns[-1] < size - 1
    predicted = [c.receptive_field for c in costs(arch).layers if c.kind in ("conv", "pool")]
    assert list(seen.values()) == predicted


# The shapes that the book prints, with the sizes of LeNet's and AlexNet's maps.
SHAPES = {
    "lenet": "conv1 6x28x28 pool1 6x14x14 conv2 16x10x10 pool2 16x5x5 flatten 400 fc3 120 fc4 84 fc5 10",
    "alexnet": "conv1 96x54x54 pool1 96x26x26 conv2 256x26x26 pool2 256x12x12 conv3 384x12x12 conv4 384x12x12 "
    "conv5 256x12x12 pool5 256x5x5 flatten 6400 fc6 4096 fc7 4096 fc8 10",
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_books_shapes(name):
    words = SHAPES[name].split()
    expected = {layer: tuple(map(int, shape.split("x"))) for layer, shape in zip(words[::2], words[1::2], strict=True)}
    found = {layer.name: layer.output_shape for layer in costs(name, batch_size=2).layers}
    assert {layer: found[layer][1:] for layer in expected} == expected
    assert {shape[0] for shape in found.values()} == {2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet", {}),
        ("lenet", {"image_size": 45, "in_channels": 3, "num_classes": 7}),
        ("alexnet", {}),
        ("alexnet", {"image_size": 131, "in_channels": 3, "num_classes": 1000}),
    ],
)
def test_costs_of_baselines_are_what_torch_counts(name, options):
    baseline = Baseline.named(name, **options)
    with torch.device("meta"):
        net = build(baseline, init="torch")
        x = torch.empty(3, baseline.in_channels, baseline.image_size, baseline.image_size)
    counted = costs(baseline, batch_size=3)
    assert counted.total.parameters == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False) as counter:
        for layer, module in zip(counted.layers, net, strict=True):
            x = module(x)
            assert layer.output_shape == tuple(x.shape)
            assert layer.activation_bytes == (0 if layer.kind == "flatten" else 4 * x.numel())
    assert counter.get_total_flops() == 2 * counted.total.macs


def test_what_is_printed_and_shown_is_a_table_and_not_a_dump(capsys):
    counted = costs("vgg16", batch_size=32)
    assert cli.main(["describe", "vgg16", "--batch-size", "32"]) == 0
    assert capsys.readouterr().out.startswith(f"{counted}\n{training_memory('vgg16', 32)}\n")
    rows = str(counted).splitlines()
    assert max(map(len, rows)) <= 80
    assert rows[0] == "vgg16: 3x224x224 images in batches of 32, 1000 classes"
    assert next(row for row in rows if row.startswith("fc6")).split() == (
        ["fc6", "1", "fc", "4096", "102,764,544", "74.3", "3,288", "0.7", "1.6", "404", "32"]
    )
    html = ElementTree.fromstring(f"<div>{counted._repr_html_().replace('<br>', '')}</div>")
    cells = [[cell.text for cell in row] for row in html.iter("tr")]
    assert ["fc6", "1 fc", "4096", "102,764,544", "74.3", "3,288", "0.7", "1.6", "404", "32"] in cells
    assert [row[0] for row in cells] == ["part", *counted.parts, "all conv", "all fc", "total"]
    for shown in (training_memory("lenet", 8), predict_step("lenet", 8, 2, 1e9, 1e9)):
        assert str(shown) in shown._repr_html_()
        assert len(str(shown).splitlines()) == 1


def test_bytes_and_macs_grow_with_the_batch_and_parameters_do_not():
    one, many = (costs(Architecture.parse("vgg11_bn/4"), n).total for n in (1, 128))
    assert many.macs == 128 * one.macs
    assert many.activation_bytes == 128 * one.activation_bytes
    assert many.param_bytes == one.param_bytes == 4 * one.parameters


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, 2**31])
def test_a_batch_size_that_cannot_be_is_refused(batch_size):
    with pytest.raises(ArchitectureError, match=r"expected a batch_size from 1 to 2147483647, got"):
        costs(Architecture.parse("vgg11"), batch_size)
