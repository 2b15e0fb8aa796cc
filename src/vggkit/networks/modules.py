"""The torch modules of layers, and the initialisation of their weights."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import get_args

from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.design.architecture import Init
from vggkit.design.layers import Layer, short_repr


class Fit(nn.Module):
    """Enlarge a map with sides below `size` to `size` by adaptive average pooling; leave others unchanged."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to at least (batch, channels, size, size)."""
        height, width = x.shape[-2:]
        if height >= self.size and width >= self.size:
            return x
        return F.adaptive_avg_pool2d(x, (max(height, self.size), max(width, self.size)))

    def extra_repr(self) -> str:
        """The arguments that `print` shows."""
        return f"size={self.size}"


def modules_of(layers: Iterable[Layer], dropout: float = 0.0) -> "OrderedDict[str, nn.Module]":
    """The module of each layer under its name; `dropout` is the probability in every dropout layer."""
    return OrderedDict((layer.name, _module(layer, dropout)) for layer in layers)


def _module(layer: Layer, dropout: float) -> nn.Module:
    match layer.kind:
        case "conv":  # with a bias also before batch norm, like all published _bn weights
            return nn.Conv2d(layer.inputs, layer.outputs, layer.kernel_size, layer.stride, layer.padding)
        case "bn":
            return nn.BatchNorm2d(layer.outputs)
        case "relu":
            return nn.ReLU()
        case "sigmoid":
            return nn.Sigmoid()
        case "lrn":
            return nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0)  # AlexNet's, section 3.3
        case "pool":
            return nn.MaxPool2d(layer.kernel_size, layer.stride)
        case "avgpool":
            return nn.AvgPool2d(layer.kernel_size, layer.stride)
        case "adaptive":
            return nn.AdaptiveAvgPool2d(layer.kernel_size)
        case "fit":
            return Fit(layer.kernel_size)
        case "flatten":
            return nn.Flatten()
        case "fc":
            return nn.Linear(layer.inputs, layer.outputs)
        case "dropout":
            return nn.Dropout(dropout)


def check_images(x: Tensor, in_channels: int, least_size: int, takes_one_size: bool) -> None:
    """Raise `ValueError` unless `x` is (batch, in_channels, height, width) with sides of (at least) `least_size`."""
    has_channels = isinstance(x, Tensor) and x.dim() == 4 and x.size(1) == in_channels
    if has_channels and x.size(2) == least_size and x.size(3) == least_size:
        return
    if has_channels and not takes_one_size and x.size(2) >= least_size and x.size(3) >= least_size:
        return
    sides = f"{least_size}, {least_size})" if takes_one_size else f"height, width), both from {least_size}"
    hint = "; this network takes one size, a VGG with the head adaptive, conv or gap takes any"
    got = list(x.shape) if isinstance(x, Tensor) else short_repr(x)
    raise ValueError(
        f"expected images of shape (batch, {in_channels}, {sides}, got {got}" + hint * (has_channels and takes_one_size)
    )


def init_weights(net: nn.Module, init: Init) -> None:
    """Initialise the weights of every convolution and fully connected layer of `net`, in place.

    Args:
        net: any module.
        init: `kaiming`: N(0, 2 / fan_in), biases 0 (arXiv 1502.01852, equation 10), which preserves the scale of
            activations. `xavier`: U(+-sqrt(6 / (fan_in + fan_out))), torch's biases (the book). `paper`: standard
            deviation 0.01 as in AlexNet, biases 0 (arXiv 1409.1556, section 3.1). `torch`: unchanged.

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
