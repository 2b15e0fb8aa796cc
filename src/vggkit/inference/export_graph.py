"""A trained network as a module that exports to every runtime, for any image size, with preprocessing if wanted.

Few runtimes have adaptive pooling and resizing, and these for few sizes. Here each is two matrix products, along the
height and along the width, with weights that the graph computes from the size of the map.
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
    """A copy of the network of `classifier` on the CPU, with the same names of parameters, in contiguous format.

    Returns:
        A module from float32 (batch, channels, height, width), as from `Preprocessing`, to logits (batch, classes);
        `with_preprocessing`, from uint8 (batch, height, width, 3), RGB of any size, to probabilities.
    """
    net: nn.Module = copy.deepcopy(classifier.net).cpu()
    net = net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    layers = OrderedDict((name, _exportable(layer)) for name, layer in net.named_children())
    if with_preprocessing:
        prepared = OrderedDict[str, nn.Module](prepare=Prepare(classifier.preprocessing))
        mean = OrderedDict[str, nn.Module](mean=OverMirrored()) if classifier.preprocessing.test_flip else {}
        layers = prepared | layers | mean | OrderedDict(probabilities=nn.Softmax(dim=1))
    return nn.Sequential(layers).eval()


def _exportable(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return Average(cast(int, layer.output_size))
    return Average(layer.size, at_least=True) if isinstance(layer, Fit) else layer


class Average(nn.Module):
    """`nn.AdaptiveAvgPool2d(size)` or, with `at_least`, `Fit(size)`, by sums and products only."""

    def __init__(self, size: int, at_least: bool = False) -> None:
        super().__init__()
        self.size, self.at_least = size, at_least

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, channels, size, size)."""
        if self.size == 1 and not self.at_least:
            return x.mean(dim=(2, 3), keepdim=True)
        return self._weights(x.shape[2], x.dtype) @ x @ self._weights(x.shape[3], x.dtype).t()

    def _weights(self, length: int, dtype: torch.dtype) -> Tensor:
        """(outputs, length): each output is the mean of the inputs that it covers, at least partly."""
        outputs = torch.sym_max(length, self.size) if self.at_least else self.size
        index, position = torch.arange(outputs).unsqueeze(1), torch.arange(length)
        first = torch.div(index * length, outputs, rounding_mode="trunc")
        end = torch.div((index + 1) * length + outputs - 1, outputs, rounding_mode="trunc")
        covers = (position >= first) & (position < end)
        return covers.to(dtype) / (end - first).to(dtype)


class OverMirrored(nn.Module):
    """The mean of the logits of images, the first half of a batch, and of their mirror images, the second half."""

    def forward(self, logits: Tensor) -> Tensor:
        """(2 x batch, classes) to (batch, classes)."""
        return logits.reshape(2, -1, logits.shape[1]).mean(dim=0)


class Prepare(nn.Module):
    """`Preprocessing` as in `vggkit.data.images.fitted`, by sums and products only.

    With `test_flip`, the mirror images follow the images. As in Pillow's Resample.c, the filter is stretched by the
    factor of reduction, the width is resampled before the height, and both passes round to 8 bits.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (batch, height, width, 3), RGB, to float32 (batch or 2 x batch, channels, image_size, image_size)."""
        how = self.preprocessing
        x = images.permute(0, 3, 1, 2).float()
        if how.channels == 1:  # the sums are below 2^24, and so exact in float32
            parts = x * x.new_tensor(LUMINANCE).view(3, 1, 1)
            x = ((parts.sum(dim=1, keepdim=True) + 2**15) / 2**16).floor()
        height, width = (torch.full((), side, dtype=torch.int64) for side in x.shape[2:])
        shorter = torch.minimum(height, width)
        rows, columns = self._samples(height, x.shape[2], shorter), self._samples(width, x.shape[3], shorter)
        x = _rounded_to_8_bits(rows @ _rounded_to_8_bits(x @ columns.t()))
        x = x.flip(1) if how.order == "bgr" else x
        factor = [how.scale / (255 * std) for std in how.std]
        offset = [mean / std for mean, std in zip(how.mean, how.std, strict=True)]
        x = x * x.new_tensor(factor).view(-1, 1, 1) - x.new_tensor(offset).view(-1, 1, 1)
        return torch.cat([x, x.flip(-1)]) if how.test_flip else x

    def _samples(self, side: Tensor, length: int, shorter: Tensor) -> Tensor:
        """(image_size, length): the weights of the pixels along one side, cropped as in `Preprocessing.seen`."""
        how, size = self.preprocessing, self.preprocessing.image_size
        start, scale = torch.zeros(()), side.float() / size
        if how.resize == "crop":
            resized = max(size, round(size / how.crop_fraction)) * side // shorter
            scale = side.float() / resized.float()
            start = ((resized - size).float() / 2).round() * scale
        centre = start + (torch.arange(size).unsqueeze(1) + 0.5) * scale
        distance = ((torch.arange(length) + 0.5 - centre) / scale.clamp(min=1)).abs()
        weights = _bicubic(distance) if how.interpolation == "bicubic" else (1 - distance).clamp(min=0)
        return weights / weights.sum(dim=1, keepdim=True)


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' filter with a = -0.5, as in Pillow. Source: IEEE Trans. ASSP 29 (6), 1981, equation 15."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def _rounded_to_8_bits(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)
