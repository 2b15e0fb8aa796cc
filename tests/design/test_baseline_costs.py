import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vggkit import Baseline, build, costs

# The shapes that the book prints, with the sizes of LeNet's and AlexNet's maps.
SHAPES = {
    "lenet": {
        "conv1": (6, 28, 28),
        "pool1": (6, 14, 14),
        "conv2": (16, 10, 10),
        "pool2": (16, 5, 5),
        "flatten": (400,),
        "fc3": (120,),
        "fc4": (84,),
        "fc5": (10,),
    },
    "alexnet": {
        "conv1": (96, 54, 54),
        "pool1": (96, 26, 26),
        "conv2": (256, 26, 26),
        "pool2": (256, 12, 12),
        "conv3": (384, 12, 12),
        "conv4": (384, 12, 12),
        "conv5": (256, 12, 12),
        "pool5": (256, 5, 5),
        "flatten": (6400,),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (10,),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_books_shapes(name):
    layers = costs(Baseline.named(name), batch_size=2).layers
    found = {layer.name: layer.output_shape for layer in layers if layer.name in SHAPES[name]}
    assert found == {layer: (2, *shape) for layer, shape in SHAPES[name].items()}


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
