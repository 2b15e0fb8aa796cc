"""VGG blocks and networks as plain torch modules, built from an `Architecture`."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vggkit.design.architecture import Architecture, Init
from vggkit.design.layers import Block, Layer, Norm
from vggkit.design.network import NetworkLike, as_network
from vggkit.errors import ArchitectureError, nearest
from vggkit.networks.modules import check_images, init_weights, modules_of

torch.fx.wrap("check_images")  # symbolic tracing records the call instead of tracing it


class VGG(nn.Sequential):
    """A network of VGG blocks: `block1`, ..., `flatten`, `fc6`, `relu6`, `drop6`, ..., under their canonical names.

    Input: float (batch, in_channels, height, width), with both sides equal to `image_size` for the head `flatten` and
    at least `architecture.min_image_size` for the others. Output: logits (batch, num_classes).
    A block is an `nn.Sequential` of `conv3_1`, `relu3_1`, ..., `pool3`, so that the keys of `state_dict()` read
    `block3.conv3_2.weight`. Every layer is torch's own; `vggkit.accelerate` runs the same network faster.

    Args:
        architecture: an `Architecture`, its text or the book's pairs, see `as_network`.
        init: see `init_weights`.

    >>> VGG(Architecture.parse("vgg11/4", in_channels=1, num_classes=10)).fc8
    Linear(in_features=4096, out_features=10, bias=True)
    """

    def __init__(self, architecture: NetworkLike, init: Init = "kaiming") -> None:
        architecture = as_network(architecture)
        if not isinstance(architecture, Architecture):
            raise ArchitectureError(f"expected a network of VGG blocks, got {architecture.name}, try build")
        blocks: OrderedDict[str, list[Layer]] = OrderedDict()
        head: list[Layer] = []
        for layer in architecture.layers():
            if layer.part.startswith("block"):
                blocks.setdefault(layer.part, []).append(layer)
            else:
                head.append(layer)
        children: OrderedDict[str, nn.Module] = OrderedDict(
            (name, nn.Sequential(modules_of(layers))) for name, layers in blocks.items()
        )
        super().__init__(children | modules_of(head, architecture.dropout))
        self.architecture = architecture
        self.in_channels, self.least_size = architecture.in_channels, architecture.min_image_size
        self.takes_one_size = architecture.head == "flatten"
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, height, width).

        Raises:
            ValueError: a shape that this network does not take.
        """
        check_images(x, self.in_channels, self.least_size, self.takes_one_size)
        for layer in self:
            x = layer(x)
        return x

    def features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of the named layers for `x`; layers after the deepest one are not computed.

        A name stands for the output of that layer alone: `conv3_2` is the convolution before its ReLU. The outputs are
        differentiable. Layers of blocks take images of any size. Hooks of layers run, those of blocks do not.

        Args:
            x: images (batch, in_channels, height, width).
            layers: canonical names, such as `relu3_3`, `conv4_1`, `pool5` or `fc7`, in any order.

        Returns:
            The outputs by name, in the given order: (batch, channels, height, width), or (batch, features) after
            `flatten`.

        Raises:
            ValueError: an unknown layer, or a shape that the network does not take.

        >>> net = VGG(Architecture.parse("vgg16/16", image_size=32))
        >>> {name: tuple(y.shape) for name, y in net.features(torch.zeros(1, 3, 32, 32), ["relu3_3", "fc7"]).items()}
        {'relu3_3': (1, 16, 8, 8), 'fc7': (1, 4096)}
        """
        return self.taps(x, layers, _run_in_order)

    def taps(
        self, x: Tensor, layers: Sequence[str], run: Callable[[list[nn.Module], Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """`features`, with `run` to apply a list of layers to a tensor."""
        num_blocks = len(self.architecture.blocks)
        layers_of_children = [
            list(child.named_children()) if type(child) is nn.Sequential else [(name, child)]
            for name, child in self.named_children()
        ]
        names, modules = zip(*itertools.chain(*layers_of_children), strict=True)
        if isinstance(layers, str) or not layers:
            example = layers if isinstance(layers, str) else f"pool{num_blocks}"
            raise ValueError(f"expected a list of layers, got {layers!r}, try {[example]}")
        for name in layers:
            if name not in names:
                close = nearest(str(name), names) or ", ".join(names)
                raise ValueError(f"expected layers of {self.architecture.name}, got {name!r}, try {close}")
        indices = sorted({names.index(name) for name in layers})
        if indices[-1] < sum(map(len, layers_of_children[:num_blocks])):
            pools = sum(name.startswith("pool") for name in names[: indices[-1] + 1])
            check_images(x, self.in_channels, 2**pools, False)
        else:
            check_images(x, self.in_channels, self.least_size, self.takes_one_size)
        outputs, start = {}, 0
        for index in indices:
            x, start = run(list(modules[start : index + 1]), x), index + 1
            outputs[names[index]] = x if index == indices[-1] else x.clone()  # a later layer may overwrite its input
        return {name: outputs[name] for name in layers}

    def __getitem__(self, index: slice | int) -> nn.Module:
        """The child at `index`, or those of a slice as a plain `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


def _run_in_order(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def vgg_block(
    num_convs: int,
    in_channels: int,
    out_channels: int | None = None,
    *,
    kernel_size: int | tuple[int, ...] = 3,
    norm: Norm = "none",
    lrn: bool = False,
) -> nn.Sequential:
    """One VGG block: `num_convs` convolutions with a ReLU each, then a 2x2 max pool.

    Input: (batch, in_channels, height, width). Output: (batch, out_channels, height // 2, width // 2).
    `vgg_block(num_convs, num_channels)`, as in other editions of the book, infers the input channels from the first
    batch (`nn.LazyConv2d`). Weights have torch's own initialisation. Source: arXiv 1409.1556, section 2.1.

    Raises:
        ArchitectureError: an invalid value, see `Block`.
    """
    inputs, outputs = (1, in_channels) if out_channels is None else (in_channels, out_channels)
    block = Block(num_convs, outputs, kernel_size, lrn)
    Architecture((block,), in_channels=inputs, image_size=2, norm=norm)  # checks the rest
    modules = modules_of(block.layers(inputs, norm=norm))
    if out_channels is None:
        first = block.kernel_sizes[0]
        modules["conv1_1"] = nn.LazyConv2d(outputs, first, padding=first // 2)
    return nn.Sequential(modules)


def vgg(
    conv_arch: Sequence[tuple[int, int]] | str,
    num_classes: int = 10,
    *,
    in_channels: int = 1,
    init: Init = "kaiming",
    **options: Any,
) -> VGG:
    """The network of the book's `vgg(conv_arch)`: by default 1 channel, 10 classes and 224 pixels.

    Args:
        conv_arch: pairs `(num_convs, out_channels)`, or a name or notation for `Architecture.parse`.
        num_classes: outputs of the last layer.
        in_channels: 1 for grey images, 3 for RGB.
        init: see `init_weights`.
        options: other fields of `Architecture`: `image_size`, `hidden`, `dropout`, `head`, `pooled_size`.

    Raises:
        ArchitectureError: an invalid network.

    >>> [name for name, _ in vgg([(1, 8), (2, 16)], image_size=28, hidden=(32,)).named_children()]
    ['block1', 'block2', 'flatten', 'fc3', 'relu3', 'drop3', 'fc4']
    """
    return VGG(as_network(conv_arch, num_classes=num_classes, in_channels=in_channels, **options), init)
