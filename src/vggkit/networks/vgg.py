"""VGG blocks and networks as torch modules, built from an `Architecture`."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as module_globals

from vggkit.design.architecture import Architecture, Block, Init, Layer, Norm
from vggkit.networks.fully_connected import Dropout, Linear


class VGG(nn.Sequential):
    """A network of VGG blocks: `block1`, ..., `flatten`, `fc6`, `relu6`, `drop6`, ..., under their canonical names.

    Input: float (batch, in_channels, image_size, image_size). Output: logits (batch, num_classes).
    A block is a plain `nn.Sequential` of `conv3_1`, `relu3_1`, ..., `pool3`, so that the keys of `state_dict()`
    read `block3.conv3_2.weight`.

    Args:
        architecture: what to build.
        init: how the weights start, see `init_weights`.

    >>> VGG(Architecture.parse("vgg11/4", in_channels=1, num_classes=10)).fc8
    Linear(in_features=4096, out_features=10, bias=True)
    """

    def __init__(self, architecture: Architecture, init: Init = "kaiming") -> None:
        blocks: OrderedDict[str, list[Layer]] = OrderedDict()
        head: list[Layer] = []
        for layer in architecture.layers():
            if layer.part.startswith("block"):
                blocks.setdefault(layer.part, []).append(layer)
            else:
                head.append(layer)
        children: OrderedDict[str, nn.Module] = OrderedDict(
            (name, nn.Sequential(_modules(layers))) for name, layers in blocks.items()
        )
        super().__init__(children | _modules(head, architecture.dropout))
        self.architecture = architecture
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_channels, image_size, image_size)."""
        arch = self.architecture
        if x.ndim != 4 or x.shape[1:] != (arch.in_channels, arch.image_size, arch.image_size):
            raise ValueError(
                f"expected images of shape (batch, {arch.in_channels}, {arch.image_size}, {arch.image_size}), "
                f"got {tuple(x.shape)}; an Architecture of that size is another network"
            )
        for child in self:
            x = _forward_block(child, x) if type(child) is nn.Sequential else child(x)
        return x

    def __getitem__(self, index: slice | int) -> nn.Module:
        """The layer at `index`, or the layers of a slice as a plain `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


def vgg_block(
    num_convs: int,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int | tuple[int, ...] = 3,
    norm: Norm = "none",
    lrn: bool = False,
) -> nn.Sequential:
    """One VGG block: `num_convs` convolutions with a ReLU each, then a 2x2 max pool.

    Input: (batch, in_channels, height, width). Output: (batch, out_channels, height // 2, width // 2).
    Its layers have torch's own initialisation. Source: arXiv 1409.1556, section 2.1.

    Raises:
        ArchitectureError: a value that cannot be, see `Block`.
    """
    block = Block(num_convs, out_channels, kernel_size, lrn)
    Architecture((block,), in_channels=in_channels, image_size=2, norm=norm)  # checks the rest
    return nn.Sequential(_modules(block.layers(in_channels, norm=norm)))


def vgg(
    conv_arch: Sequence[tuple[int, int]] | str,
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 224,
    hidden: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    init: Init = "kaiming",
) -> VGG:
    """The network of the book's `vgg(conv_arch)`: 1 channel, 10 classes, 224 pixels unless told otherwise.

    Args:
        conv_arch: pairs `(num_convs, out_channels)`, or a name or notation as `Architecture.parse` takes.
        in_channels: 1 for grey images, 3 for RGB.
        num_classes: outputs of the last layer.
        image_size: pixels along a side of the input.
        hidden: widths of the hidden fully connected layers.
        dropout: probability of dropping a hidden unit.
        init: see `init_weights`.

    Raises:
        ArchitectureError: a network that cannot be.

    >>> [name for name, _ in vgg([(1, 8), (2, 16)], image_size=28, hidden=(32,)).named_children()]
    ['block1', 'block2', 'flatten', 'fc3', 'relu3', 'drop3', 'fc4']
    """
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "image_size": image_size,
        "hidden": hidden,
        "dropout": dropout,
    }
    if isinstance(conv_arch, str):
        return VGG(Architecture.parse(conv_arch, **options), init)
    return VGG(Architecture(conv_arch, **options), init)  # type: ignore[arg-type]


def init_weights(net: nn.Module, init: Init) -> None:
    """Draw the weights of every convolution and fully connected layer of `net` anew, in place.

    Args:
        net: any module.
        init: `kaiming`: N(0, 2 / fan_in), biases 0 (arXiv 1502.01852, equation 10), which keeps the scale of
            activations through any depth. `xavier`: U(+-sqrt(6 / (fan_in + fan_out))), biases as torch has
            them: the book's. `paper`: N(0, 0.01), a standard deviation as in AlexNet, biases 0
            (arXiv 1409.1556, section 3.1). `torch`: left as torch made them.

    Raises:
        ValueError: another `init`.
    """
    if init not in get_args(Init):
        raise ValueError(f"expected init to be one of {', '.join(get_args(Init))}, got {init!r}")
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if init == "kaiming":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif init == "xavier":
            nn.init.xavier_uniform_(module.weight)
        elif init == "paper":
            nn.init.normal_(module.weight, std=0.01)
        if init in ("kaiming", "paper") and module.bias is not None:
            nn.init.zeros_(module.bias)


def _modules(layers: Iterable[Layer], dropout: float = 0.0) -> OrderedDict[str, nn.Module]:
    return OrderedDict((layer.name, _module(layer, dropout)) for layer in layers)


def _module(layer: Layer, dropout: float) -> nn.Module:
    match layer.kind:
        case "conv":  # with a bias also before batch norm, as all published _bn weights have it
            return nn.Conv2d(layer.inputs, layer.outputs, layer.kernel_size, padding=layer.kernel_size // 2)
        case "bn":
            return nn.BatchNorm2d(layer.outputs)
        case "relu":
            return nn.ReLU()
        case "lrn":
            return nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0)  # AlexNet's, section 3.3
        case "pool":
            return nn.MaxPool2d(kernel_size=2, stride=2)
        case "flatten":
            return nn.Flatten()
        case "fc":
            return Linear(layer.inputs, layer.outputs)
        case "dropout":
            return Dropout(dropout)


def _forward_block(block: nn.Sequential, x: Tensor) -> Tensor:
    """`block(x)` to the last bit, gradients too, with less memory and time.

    The maximum of a window commutes with ReLU, so that pooling first leaves a quarter of the values to rectify;
    and a ReLU may overwrite what the layer before it has just made, unless somebody is watching.
    """
    if _is_watched(block):
        return block(x)  # type: ignore[no-any-return]
    layers = list(block)
    if [type(layer) for layer in layers[-2:]] == [nn.ReLU, nn.MaxPool2d]:
        layers[-2:] = reversed(layers[-2:])
    is_fresh = False
    for layer in layers:
        x = F.relu_(x) if is_fresh and type(layer) is nn.ReLU else layer(x)
        # None of these keeps its own output for the backward pass.
        is_fresh = type(layer) in (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
    return x


def _is_watched(block: nn.Module) -> bool:
    """Whether hooks would see the difference, or somebody has put a forward of their own into the block."""
    if torch.compiler.is_compiling():
        return True
    if module_globals._global_forward_hooks or module_globals._global_forward_pre_hooks:
        return True
    if module_globals._global_backward_hooks or module_globals._global_backward_pre_hooks:
        return True
    return any(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or "forward" in vars(m)
        or m._compiled_call_impl is not None
        for m in block.modules()
    )
