"""Copies of a network with another head, image size or input channels, or with preprocessing folded in."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.data.preprocessing import Preprocessing
from vggkit.design.architecture import POOLED_SIZE, Architecture, Head
from vggkit.errors import ArchitectureError, check_type
from vggkit.networks.vgg import VGG

PADDING_KEY = "block1.conv1_1.padding_value"
A_VGG = ("a VGG network", "load_classifier(...).net, or load_weights(path)[0]")


def with_head(net: VGG, head: Head) -> VGG:
    """A copy of `net` with the head `flatten`, `adaptive` or `conv`, which have the same weights in other shapes.

    Their logits are equal for images whose last map has the size that the weights expect. `flatten` takes only those;
    `adaptive` averages the map to that size, and `conv` averages the logits over all positions of the map.

    Raises:
        ArchitectureError: from or to `gap`, which has other weights; or to `flatten` if the map of `image_size` has
            another size than the weights expect.

    >>> net = VGG(Architecture.parse("vgg11/16", image_size=64, hidden=(8,)))
    >>> with_head(net, "conv").fc6
    Conv2d(32, 8, kernel_size=(2, 2), stride=(1, 1))
    """
    check_type(net, VGG, *A_VGG)
    arch = net.architecture
    if (head == "gap") != (arch.head == "gap"):
        raise ArchitectureError(
            f"expected heads with the same weights (flatten, adaptive, conv), got {arch.head} to {head}, "
            "try a new network, and train it"
        )
    expected_size = arch.map_size if arch.head == "flatten" else arch.pooled_size  # of the map, by the weights
    if head == "flatten" and arch.map_size != expected_size:
        min_size = expected_size << len(arch.blocks)
        raise ArchitectureError(
            f"expected an image_size from {min_size} to {min_size + 2 ** len(arch.blocks) - 1} for flatten, whose "
            f"weights are for a map of {expected_size}x{expected_size}, got {arch.image_size}"
        )
    pooled_size = POOLED_SIZE if head in ("flatten", "gap") else expected_size
    return _copy(net, replace(arch, head=head, pooled_size=pooled_size))


def with_common_scale(net: VGG, preprocessing: Preprocessing) -> tuple[VGG, Preprocessing]:
    """A copy of `net`, and its preprocessing, with one mean and one std for all channels, so that they can be summed.

    The first convolution absorbs the difference, exactly except at the border, where the zero padding stands for
    another value than before.

    Raises:
        ArchitectureError: the numbers of channels differ, or preprocessing has been folded in already.
    """
    _check_foldable(net, preprocessing)
    common = preprocessing.for_channels(1).for_channels(preprocessing.channels)
    same = _copy(net, net.architecture)
    conv = _first_conv(same)
    with torch.no_grad():
        weight = conv.weight.double()
        mean, std, new_mean, new_std = (
            weight.new_tensor(values).view(1, -1, 1, 1)
            for values in (preprocessing.mean, preprocessing.std, common.mean, common.std)
        )
        cast(Tensor, conv.bias).add_((weight * (new_mean - mean) / std).sum(dim=(1, 2, 3)))
        conv.weight.copy_(weight * new_std / std)
    return same, common


def with_image_size(net: VGG, image_size: int) -> VGG:
    """A copy of `net` for images of another size, with the same weights.

    Raises:
        ArchitectureError: the head is `flatten`, whose weights expect another map size.
    """
    check_type(net, VGG, *A_VGG)
    arch = replace(net.architecture, image_size=image_size)
    if arch.head == "flatten" and arch.map_size != net.architecture.map_size:
        raise ArchitectureError(
            f"expected the image_size {net.architecture.image_size} for flatten, whose weights are for its map, "
            f"got {image_size}, try the heads adaptive or conv"
        )
    return _copy(net, arch)


def with_in_channels(net: VGG, in_channels: int) -> VGG:
    """A copy of `net` for images of `in_channels`; channels that are equal modulo the smaller number share weights.

    To fewer channels, weights are summed: from 3 to 1, a grey image gives the output of its RGB version. To more, each
    weight is divided among its copies: from 1 to 3, three equal channels give the output of one.
    """
    if is_folded(net):
        raise ArchitectureError("expected a network without folded preprocessing, got one, try the channels first")
    arch, weight = replace(net.architecture, in_channels=in_channels), _first_conv(net).weight
    old, new = (torch.arange(n) % min(weight.shape[1], in_channels) for n in (weight.shape[1], in_channels))
    shares = (old[:, None] == new).double()  # (old, new): share of an old channel's weight for a new one
    shares = (shares / shares.sum(dim=1, keepdim=True)).to(weight.device)
    shared = torch.einsum("oihw,in->onhw", weight.detach().double(), shares).to(weight.dtype)
    return _copy(net, arch, {**net.state_dict(), "block1.conv1_1.weight": shared})


def fold_preprocessing(net: VGG, preprocessing: Preprocessing) -> VGG:
    """A copy of `net` for RGB in [0, 1], with order, scale, mean and std folded into the first convolution.

    This is exact, also at the border, since the copy pads with the mean. Images must still be resized.

    Raises:
        ArchitectureError: the numbers of channels differ, or preprocessing has been folded in already.
    """
    _check_foldable(net, preprocessing)
    folded = _copy(net, net.architecture)
    pad_with_values(folded)
    conv: Any = _first_conv(folded)
    with torch.no_grad():
        weight = conv.weight.double()
        mean, std = (weight.new_tensor(values) for values in (preprocessing.mean, preprocessing.std))
        # conv((scale x - mean) / std) = conv'(x) - conv'(mean / scale), with weight' = weight scale / std
        weight = weight * (preprocessing.scale / std).view(1, -1, 1, 1)
        value = mean / preprocessing.scale
        bias = conv.bias.double() - (weight * value.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
        if preprocessing.order == "bgr":
            weight, value = weight.flip(1), value.flip(0)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
        conv.padding_value.copy_(value)
    return folded


def is_folded(net: VGG) -> bool:
    """Whether preprocessing is folded into `net`."""
    check_type(net, VGG, *A_VGG)
    return isinstance(_first_conv(net), ValuePaddedConv2d)


def _check_foldable(net: VGG, preprocessing: Preprocessing) -> None:
    if is_folded(net):
        raise ArchitectureError("expected a network without folded preprocessing, got one with it, try the one before")
    check_type(preprocessing, Preprocessing, "a Preprocessing", "that of a classifier")
    if net.architecture.in_channels != preprocessing.channels:
        raise ArchitectureError(
            f"expected a network of {preprocessing.channels} channels, as the preprocessing has, got one of "
            f"{net.architecture.in_channels}"
        )


class ValuePaddedConv2d(nn.Conv2d):
    """A convolution that pads each input channel with its entry of the buffer `padding_value` (in_channels,)."""

    padding_value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out_channels, height, width)."""
        border = self.kernel_size[0] // 2
        height, width = x.shape[-2:]
        value = self.padding_value.to(x.dtype).view(1, -1, 1, 1)
        inside = F.pad(torch.ones(height, width, dtype=torch.bool, device=x.device), (border,) * 4)
        return F.conv2d(torch.where(inside, F.pad(x, (border,) * 4), value), self.weight, self.bias)


def pad_with_values(net: VGG) -> None:
    """Replace the first convolution of `net` by a `ValuePaddedConv2d` that pads with zeros, in place."""
    old = _first_conv(net)
    new = ValuePaddedConv2d(old.in_channels, old.out_channels, old.kernel_size[0], device="meta")
    new.weight, new.bias = old.weight, old.bias
    new.register_buffer("padding_value", old.weight.new_zeros(old.in_channels))
    net.get_submodule("block1").conv1_1 = new


def _first_conv(net: VGG) -> nn.Conv2d:
    return cast(nn.Conv2d, net.get_submodule("block1.conv1_1"))


def _copy(net: VGG, architecture: Architecture, state: dict[str, Tensor] | None = None) -> VGG:
    """A network of `architecture` with reshaped copies of `state`, and the frozen parameters and modes of `net`."""
    state = state or net.state_dict()
    with torch.device("meta"):
        result = VGG(architecture, init="torch")
        if PADDING_KEY in state:
            pad_with_values(result)
    shapes = {name: tensor.shape for name, tensor in result.state_dict().items()}
    result.load_state_dict({k: t.detach().reshape(shapes[k]).clone() for k, t in state.items()}, assign=True)
    for parameter, old in zip(result.parameters(), net.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    modes = {name: module.training for name, module in net.named_modules()}
    for name, module in result.named_modules():
        module.training = modes.get(name, net.training)
    return result
