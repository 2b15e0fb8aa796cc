"""LeNet and AlexNet, the book's other networks, as torch modules."""

from typing import Any

import torch
from torch import Tensor, nn

from vggkit.design.architecture import Init
from vggkit.design.baselines import Baseline
from vggkit.design.network import NetworkLike, as_network
from vggkit.networks.modules import check_images, init_weights, modules_of
from vggkit.networks.vgg import VGG

torch.fx.wrap("check_images")  # symbolic tracing records the call instead of tracing it


class BaselineNetwork(nn.Sequential):
    """A `Baseline` as a flat `nn.Sequential`, which iterates and prints as the book's does.

    Input: float (batch, in_channels, image_size, image_size). Output: logits (batch, num_classes).
    """

    def __init__(self, architecture: Baseline, init: Init = "xavier") -> None:
        super().__init__(modules_of(architecture.layers(), architecture.dropout))
        self.architecture = architecture
        self.in_channels, self.least_size = architecture.in_channels, architecture.image_size
        self.takes_one_size = True
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, image_size, image_size)."""
        check_images(x, self.in_channels, self.least_size, self.takes_one_size)
        for layer in self:
            x = layer(x)
        return x


def lenet(init: Init = "xavier", **options: Any) -> BaselineNetwork:
    """LeNet-5 as in the book, with sigmoids and average pools; by default 28 pixels, 1 channel and 10 classes.

    `options` are `image_size`, `in_channels` and `num_classes`; for `init` see `init_weights`.

    >>> lenet().fc3
    Linear(in_features=400, out_features=120, bias=True)
    """
    return BaselineNetwork(Baseline.named("lenet", **options), init)


def alexnet(init: Init = "xavier", **options: Any) -> BaselineNetwork:
    """AlexNet as in the book; by default 224 pixels, 1 channel and 10 classes; for `options` see `lenet`.

    >>> alexnet().fc6
    Linear(in_features=6400, out_features=4096, bias=True)
    """
    return BaselineNetwork(Baseline.named("alexnet", **options), init)


def build(network: NetworkLike, init: Init = "kaiming") -> VGG | BaselineNetwork:
    """The module of any network that `as_network` takes."""
    network = as_network(network)
    return BaselineNetwork(network, init) if isinstance(network, Baseline) else VGG(network, init)
