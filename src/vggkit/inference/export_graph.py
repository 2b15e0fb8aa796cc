"""A trained network as a module whose graph every runtime takes, at any size of image; preprocessing is in it if asked.

Adaptive pooling and resizing exist in few runtimes, and there for few sizes. Here each is two products with a matrix
of weights, which the graph computes from the size of the map: along the height and along the width.
"""

import copy
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn

from vggkit.data.preprocessing import Preprocessing
from vggkit.inference.predict import Classifier
from vggkit.networks.modules import Fit

LUMINANCE = (19595, 38470, 7471)
"""Of red, green and blue in 65,536ths: ITU-R 601-2, as Pillow rounds it."""


def graph_of(classifier: Classifier, with_preprocessing: bool) -> nn.Sequential:
    """A copy of the network of `classifier` on the CPU, whose parameters have their names and torch's usual strides.

    Returns:
        A module from float32 (batch, channels, height, width), as `Preprocessing` gives them, to logits
        (batch, classes); `with_preprocessing` from uint8 (batch, height, width, 3), RGB of any size, to probabilities.
    """
    net: nn.Module = copy.deepcopy(classifier.net).cpu()
    net = net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    layers = OrderedDict((name, _lowered(layer)) for name, layer in net.named_children())
    if with_preprocessing:
        prepared = OrderedDict[str, nn.Module](prepare=Prepare(classifier.preprocessing))
        mean = OrderedDict[str, nn.Module](mean=OverMirrored()) if classifier.preprocessing.test_flip else {}
        layers = prepared | layers | mean | OrderedDict(probabilities=nn.Softmax(dim=1))
    return nn.Sequential(layers).eval()


def _lowered(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return Average(cast(int, layer.output_size))
    return Average(layer.size, at_least=True) if isinstance(layer, Fit) else layer


class Average(nn.Module):
    """`nn.AdaptiveAvgPool2d(size)`, or `Fit(size)` with `at_least`, by sums and products alone."""

    def __init__(self, size: int, at_least: bool = False) -> None:
        super().__init__()
        self.size, self.at_least = size, at_least

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, channels, size, size)."""
        if self.size == 1 and not self.at_least:
            return x.mean(dim=(2, 3), keepdim=True)
        return self._weights(x.shape[2], x.dtype) @ x @ self._weights(x.shape[3], x.dtype).t()

    def _weights(self, length: int, dtype: torch.dtype) -> Tensor:
        """(outputs, length): each output is the mean of the places that it covers, wholly or in part."""
        outputs = torch.sym_max(length, self.size) if self.at_least else self.size
        index, place = torch.arange(outputs).unsqueeze(1), torch.arange(length)
        first = torch.div(index * length, outputs, rounding_mode="trunc")
        end = torch.div((index + 1) * length + outputs - 1, outputs, rounding_mode="trunc")
        covers = (place >= first) & (place < end)
        return covers.to(dtype) / (end - first).to(dtype)


class OverMirrored(nn.Module):
    """The mean of the logits of images and of their mirror images, which follow them."""

    def forward(self, logits: Tensor) -> Tensor:
        """(2 x batch, classes) to (batch, classes)."""
        return logits.reshape(2, -1, logits.shape[1]).mean(dim=0)


class Prepare(nn.Module):
    """`Preprocessing` as `vggkit.data.images.fitted` does it, by sums and products alone.

    With `test_flip`, the mirror images follow the images.

    As in Pillow's Resample.c, the filter is stretched by the factor by which an image is reduced, the width is
    resampled before the height, and both passes round to 8 bits.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (batch, height, width, 3), RGB, to float32 (batch or 2 x batch, channels, image_size, image_size)."""
        how = self.preprocessing
        x = images.permute(0, 3, 1, 2).float()
        if how.channels == 1:  # sums below 2^24, which float32 holds exactly
            parts = x * x.new_tensor(LUMINANCE).view(3, 1, 1)
            x = ((parts.sum(dim=1, keepdim=True) + 2**15) / 2**16).floor()
        height, width = (torch.full((), side, dtype=torch.int64) for side in x.shape[2:])
        shorter = torch.minimum(height, width)
        rows, columns = (
            self._samples(side, whole, shorter) for side, whole in zip((height, width), x.shape[2:], strict=True)
        )
        x = _in_8_bits(rows @ _in_8_bits(x @ columns.t()))
        x = x.flip(1) if how.order == "bgr" else x
        factor, offset = zip(
            *((how.scale / (255 * s), m / s) for m, s in zip(how.mean, how.std, strict=True)), strict=True
        )
        x = x * x.new_tensor(factor).view(-1, 1, 1) - x.new_tensor(offset).view(-1, 1, 1)
        return torch.cat([x, x.flip(-1)]) if how.test_flip else x

    def _samples(self, side: Tensor, length: int, shorter: Tensor) -> Tensor:
        """(image_size, length): the weights of the pixels along one side; see `Preprocessing.seen` for which."""
        how, size = self.preprocessing, self.preprocessing.image_size
        start, scale = torch.zeros(()), side.float() / size
        if how.resize == "crop":
            whole = max(size, round(size / how.crop_fraction)) * side // shorter
            scale = side.float() / whole.float()
            start = ((whole - size).float() / 2).round() * scale
        centre = start + (torch.arange(size).unsqueeze(1) + 0.5) * scale
        distance = ((torch.arange(length) + 0.5 - centre) / scale.clamp(min=1)).abs()
        weights = _bicubic(distance) if how.interpolation == "bicubic" else (1 - distance).clamp(min=0)
        return weights / weights.sum(dim=1, keepdim=True)


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' filter with a = -0.5, as Pillow has it. Source: IEEE Trans. ASSP 29 (6), 1981, equation 15."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def _in_8_bits(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)
