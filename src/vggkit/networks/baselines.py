"""LeNet and AlexNet, the book's other networks, for comparisons."""

from typing import Any

from torch import Tensor, nn

from vggkit.design.architecture import Init
from vggkit.design.baselines import Baseline
from vggkit.design.network import NetworkLike, as_network
from vggkit.networks.modules import init_weights, modules_of
from vggkit.networks.vgg import VGG


class BaselineNetwork(nn.Sequential):
    """A `Baseline` as a flat `nn.Sequential`, which iterates and prints as the book's does.

    Input: float (batch, in_channels, image_size, image_size). Output: logits (batch, num_classes).
    """

    def __init__(self, architecture: Baseline, init: Init = "xavier") -> None:
        super().__init__(modules_of(architecture.layers(), architecture.dropout))
        self.architecture = architecture
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, image_size, image_size)."""
        arch = self.architecture
        if x.ndim != 4 or x.shape[1:] != (arch.in_channels, arch.image_size, arch.image_size):
            raise ValueError(
                f"expected images of shape (batch, {arch.in_channels}, {arch.image_size}, {arch.image_size}), "
                f"got {tuple(x.shape)}"
            )
        for layer in self:
            x = layer(x)
        return x


def lenet(init: Init = "xavier", **options: Any) -> BaselineNetwork:
    """LeNet-5 as the book has it: sigmoids, average pools, 28 pixels, 1 channel, 10 classes unless told otherwise.

    Args:
        init: see `init_weights`.
        options: the fields of `Baseline`: `image_size`, `in_channels`, `num_classes`.

    >>> lenet().fc3
    Linear(in_features=400, out_features=120, bias=True)
    """
    return BaselineNetwork(Baseline.named("lenet", **options), init)


def alexnet(init: Init = "xavier", **options: Any) -> BaselineNetwork:
    """AlexNet as the book has it: 224 pixels, 1 channel, 10 classes unless told otherwise.

    Args:
        init: see `init_weights`.
        options: the fields of `Baseline`: `image_size`, `in_channels`, `num_classes`.

    >>> alexnet().fc6
    Linear(in_features=6400, out_features=4096, bias=True)
    """
    return BaselineNetwork(Baseline.named("alexnet", **options), init)


def build(network: NetworkLike, init: Init = "kaiming", *, checkpoint: bool = False) -> VGG | BaselineNetwork:
    """The module of any network, see `as_network`; `checkpoint` is for VGG networks, see `VGG`."""
    network = as_network(network)
    if isinstance(network, Baseline):
        return BaselineNetwork(network, init)
    return VGG(network, init, checkpoint=checkpoint)
