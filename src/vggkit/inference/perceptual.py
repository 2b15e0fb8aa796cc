"""Comparison of images by the layers of a trained network: a perceptual loss, and the learned distance LPIPS.

Sources: Gatys, Ecker & Bethge, arXiv 1508.06576 (content and style, the Gram matrix); Johnson, Alahi & Fei-Fei,
arXiv 1603.08155 (both as a loss to train with, divided by the size of the maps); Zhang et al., arXiv 1801.03924
(the learned distance).
"""

import math
import os
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vggkit.data.preprocessing import Preprocessing
from vggkit.errors import WeightsError, check_type, shown
from vggkit.networks.vgg import VGG
from vggkit.weights.containers import open_container

LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


class PerceptualLoss(nn.Module):
    """The weighted sum, over named layers, of mean squared differences of maps (content) and Gram matrices (style).

    Args:
        net: a trained network; it is set to evaluation mode, frozen, and run up to the deepest layer named.
        preprocessing: of its weights; images are not resized, as the blocks take any size.
        content: the weight of each layer whose maps are compared, such as `{"relu3_3": 1.0}`.
        style: the weight of each layer whose Gram matrices are compared.

    Raises:
        ValueError: no layer, or an unknown layer of the blocks.

    >>> import torch
    >>> from vggkit import Architecture
    >>> net = VGG(Architecture.parse("vgg16/16", image_size=32))
    >>> loss = PerceptualLoss(net, Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3), content={"relu3_3": 1.0})
    >>> x = torch.zeros(1, 3, 48, 64)
    >>> loss(x, x).item()
    0.0
    """

    def __init__(
        self,
        net: VGG,
        preprocessing: Preprocessing,
        *,
        content: Mapping[str, float] | None = None,
        style: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check(net, preprocessing)
        for weights in (content, style):
            check_type(weights, Mapping | None, "a weight for each layer", "{'relu3_3': 1.0}")
        self.net = net.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.content, self.style = dict(content or {}), dict(style or {})
        names = {layer.name for layer in net.architecture.layers() if layer.part.startswith("block")}
        for name in self.layers:
            if name not in names:
                raise ValueError(f"expected layers of the blocks of {net.architecture.name}, got {name!r}")
        if not self.layers:
            raise ValueError("expected a layer in content or style, got none, try content={'relu3_3': 1.0}")

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """As `nn.Module.train`, but the network stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    @property
    def layers(self) -> list[str]:
        """The layers that are compared."""
        return list(dict.fromkeys([*self.content, *self.style]))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar; its gradient flows to `output`, and to `target` if that requires one.

        Args:
            output: float (batch, channels, height, width), RGB in [0, 1].
            target: of the same shape and range.
        """
        ours, theirs = _maps(self, self.layers, output, target)
        loss = output.new_zeros(())
        for name, weight in self.content.items():
            loss = loss + weight * (ours[name] - theirs[name]).square().mean()
        for name, weight in self.style.items():
            loss = loss + weight * (gram_matrix(ours[name]) - gram_matrix(theirs[name])).square().mean()
        return loss


class LPIPS(nn.Module):
    """The learned distance LPIPS, version 0.1: how different people find two images, from 0.

    At each position of five maps of a VGG-16, the channels of both images are scaled to length 1; the squares of their
    differences are summed with learned weights, averaged over the positions and summed over the maps. With
    torchvision's weights, for which it was learned, it equals the distance of the package `lpips`.

    Args:
        net: a VGG-16, which is frozen; only its blocks are run, which take images from 16 pixels.
        preprocessing: of its weights.
        heads: a file with `lin0.model.1.weight` to `lin4.model.1.weight`, such as `lpips/weights/v0.1/vgg.pth`.

    Raises:
        WeightsError: the file is missing or damaged, or has no heads for these layers.
    """

    def __init__(self, net: VGG, preprocessing: Preprocessing, heads: str | os.PathLike[str]) -> None:
        super().__init__()
        _check(net, preprocessing)
        self.net, self.preprocessing = net.eval().requires_grad_(False), preprocessing
        widths = {layer.name: layer.outputs for layer in net.architecture.layers()}
        expected = {f"lin{n}.model.1.weight": (1, widths.get(name), 1, 1) for n, name in enumerate(LPIPS_LAYERS)}
        with open_container(heads) as (stored, _):
            if any(name not in stored or stored[name].shape != shape for name, shape in expected.items()):
                got = ", ".join(f"{name} {tensor.shape}" for name, tensor in list(stored.items())[:5])
                raise WeightsError(f"expected {expected}, as {net.architecture.name} asks, got {shown(got, 300)}")
            for layer, name in zip(LPIPS_LAYERS, expected, strict=True):
                self.register_buffer(layer, stored[name].read().float())

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The distance of each pair, (batch,); its gradient flows to `output`, and to `target` if that requires one.

        Args:
            output: float (batch, 3, height, width), RGB in [0, 1].
            target: of the same shape and range.
        """
        ours, theirs = _maps(self, LPIPS_LAYERS, output, target)
        distances = output.new_zeros(len(output))
        for name in LPIPS_LAYERS:
            difference = F.normalize(ours[name], eps=1e-10) - F.normalize(theirs[name], eps=1e-10)
            distances = distances + F.conv2d(difference.square(), self.get_buffer(name)).mean(dim=(1, 2, 3))
        return distances


def _check(net: VGG, preprocessing: Preprocessing) -> None:
    check_type(net, VGG, "a VGG network", "load_classifier(...).net")
    check_type(preprocessing, Preprocessing, "a Preprocessing", "load_classifier(...).preprocessing")


def _maps(
    module: PerceptualLoss | LPIPS, layers: Sequence[str], output: Tensor, target: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outputs of `layers` for two batches of images; raises `ValueError` unless their shapes are equal."""
    channels = module.preprocessing.channels
    if output.shape != target.shape or output.ndim != 4 or output.shape[1] != channels:
        raise ValueError(
            f"expected two batches of one shape and {channels} channels, got {tuple(output.shape)} and "
            f"{tuple(target.shape)}"
        )
    ours, theirs = (module.net.features(module.preprocessing.normalize(x), layers) for x in (output, target))
    return ours, theirs


def gram_matrix(maps: Tensor) -> Tensor:
    """The Gram matrices of (batch, channels, height, width), each divided by channels x height x width.

    Returns:
        (batch, channels, channels).
    """
    # Divided before the product, against overflow in float16.
    flat = maps.flatten(start_dim=2) / math.sqrt(maps.shape[1:].numel())
    return flat @ flat.transpose(1, 2)
