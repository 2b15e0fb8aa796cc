"""Evaluation on several views of an image: mirror images, crops, and the whole image, at one or more scales.

Source: Simonyan & Zisserman, arXiv 1409.1556, sections 3.2 and 4: the softmax outputs of all views are averaged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vggkit.data.feed import Batch
from vggkit.data.images import decoded, fitted, pixels_of
from vggkit.data.samples import Images
from vggkit.engines import gpu
from vggkit.engines.accelerate import accelerate
from vggkit.errors import DataError, UserError
from vggkit.inference.predict import Classifier
from vggkit.networks.vgg import VGG
from vggkit.weights.surgery import with_head

Kind = Literal["flip", "multi-crop", "dense", "dense+crop"]

GRID = 5
"""Crops along each side of an image, evenly spaced; fewer if there are fewer positions."""
MAX_SCALE, MAX_PIXELS = 4096, 2**24
"""Limits of the shorter side and of the whole resized image, which may be a long strip."""


@dataclass(frozen=True)
class Views:
    """Views of an image, each with its mirror image; raises `UserError` for invalid values."""

    kind: Kind
    """`flip`: the centre crop; `multi-crop`: a grid of 5 x 5 crops; `dense`: the whole image, with the fully connected
    layers as convolutions; `dense+crop`: the mean of both."""
    scales: tuple[int, ...] = ()
    """Sizes of the shorter side in pixels to which an image is resized; if empty, as by the preprocessing."""

    def __str__(self) -> str:
        views = {
            "flip": "each image",
            "multi-crop": f"up to {GRID} x {GRID} crops of each image",
            "dense": "each whole image",
            "dense+crop": f"each whole image, up to {GRID} x {GRID} crops of it",
        }[self.kind]
        scales = f", at {', '.join(map(str, self.scales))} pixels" * bool(self.scales)
        return f"mean of {views} and the mirror image{'s' * ('crop' in self.kind)}{scales}"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"expected views of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not all(isinstance(scale, int) and 1 <= scale <= MAX_SCALE for scale in self.scales):
            raise UserError(f"expected scales in pixels from 1 to {MAX_SCALE:,}, got {self.scales}")


@torch.no_grad()
def viewed(
    classifier: Classifier, images: Images, views: Views, names: dict[int, str]
) -> Iterator[tuple[Batch, Tensor]]:
    """Each image as a batch, with its log probabilities, float32 (1, classes); its name is added to `names`.

    Raises:
        DataError: an image is bad, or too large once it is resized.
        UserError: a scale is below the network's image size, or the network cannot be dense.
    """
    how, device = classifier.preprocessing, classifier.device
    if any(scale < how.image_size for scale in views.scales):
        raise UserError(f"expected scales from {how.image_size}, the size of the network's images, got {views.scales}")
    dense = _dense(classifier) if "dense" in views.kind else None
    read = images.reader(0, 0)
    for position in range(len(images)):
        sample = read(position)
        names[position] = sample.name
        image = decoded(sample.content, how.channels, sample.name)
        probabilities = []
        for scale in views.scales or (None,):
            resized = torch.from_numpy(pixels_of(_resized(classifier, image, scale, sample.name))).to(device)
            if dense is not None:
                probabilities.append(_probabilities(dense, resized[None], classifier))
            if views.kind != "dense":
                crops = _crops(resized, how.image_size, GRID if "crop" in views.kind else 1)
                probabilities.append(_probabilities(classifier.fast, crops, classifier))
        pixels = torch.from_numpy(fitted(image, how, sample.name)).to(device)[None]
        batch = Batch(pixels, torch.tensor([sample.label], device=device), slice(0, 1), 1)
        yield batch, torch.stack(probabilities).mean(0).log()


def _dense(classifier: Classifier) -> nn.Module:
    """The network with its fully connected layers as convolutions, for images of any size."""
    net = classifier.net
    if not isinstance(net, VGG):
        raise UserError(f"expected a VGG network for dense views, got {net.architecture.name}, try multi-crop")
    return classifier.fast if net.architecture.head in ("conv", "gap") else accelerate(with_head(net, "conv").eval())


def _resized(classifier: Classifier, image: Image.Image, scale: int | None, name: str) -> Image.Image:
    """The image, resized to a shorter side of `scale` pixels or as by the preprocessing."""
    how = classifier.preprocessing
    size = (how.image_size, how.image_size)
    if scale is not None or how.resize == "crop":
        shorter = scale or round(how.image_size / how.crop_fraction)
        width, height = (shorter * side // min(image.size) for side in image.size)
        if width * height > MAX_PIXELS:
            raise DataError(f"{name}: expected at most {MAX_PIXELS:,} pixels in a view, got {width} x {height}")
        size = (width, height)
    return image.resize(size, Image.Resampling[how.interpolation.upper()])


def _crops(image: Tensor, size: int, grid: int) -> Tensor:
    """A grid of square crops of an image, or the centre crop for a grid of 1: uint8 (crops, channels, size, size)."""
    starts = []
    for span in (length - size for length in image.shape[1:]):
        positions = np.linspace(0, span, grid) if grid > 1 else np.array([span / 2])
        starts.append(np.unique(positions.round().astype(int)).tolist())
    return torch.stack([image[:, y : y + size, x : x + size] for y in starts[0] for x in starts[1]])


def _probabilities(net: nn.Module, pixels: Tensor, classifier: Classifier) -> Tensor:
    """The mean softmax output, (1, classes), of uint8 (views, channels, height, width) and their mirror images."""
    x = classifier.preprocessing.normalize(pixels.float() / 255)
    x = torch.cat([x, x.flip(-1)])
    with gpu.half(x):
        logits: Tensor = net(x)
    return logits.float().softmax(dim=1).mean(dim=0, keepdim=True)
