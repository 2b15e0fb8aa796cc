"""Several views of an image: mirror images, crops, and the whole of it at once, at one scale or several.

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
"""Crops along each side of an image, from edge to edge; fewer where there are fewer places."""
MAX_SCALE, MAX_PIXELS = 4096, 2**24
"""Of the shorter side, and of the whole image once it is resized, which a strip would make large."""


@dataclass(frozen=True)
class Views:
    """Which views of an image are taken, each with its mirror image; raises `UserError` for what cannot be."""

    kind: Kind
    """`flip`: the middle; `multi-crop`: a grid of 5 x 5 crops; `dense`: the whole image, by fully connected layers that
    slide over it as convolutions; `dense+crop`: the mean of both."""
    scales: tuple[int, ...] = ()
    """Pixels of the shorter side that an image is resized to; if there are none, as the preprocessing does."""

    def __str__(self) -> str:
        seen = {
            "flip": "each image",
            "multi-crop": f"up to {GRID} x {GRID} crops of each image",
            "dense": "each whole image",
            "dense+crop": f"each whole image, up to {GRID} x {GRID} crops of it",
        }[self.kind]
        scales = f", at {', '.join(map(str, self.scales))} pixels" * bool(self.scales)
        return f"mean of {seen} and the mirror image{'s' * ('crop' in self.kind)}{scales}"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"expected views of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not all(isinstance(scale, int) and 1 <= scale <= MAX_SCALE for scale in self.scales):
            raise UserError(f"expected scales in pixels from 1 to {MAX_SCALE:,}, got {self.scales}")


@torch.no_grad()
def viewed(
    classifier: Classifier, images: Images, views: Views, names: dict[int, str]
) -> Iterator[tuple[Batch, Tensor]]:
    """Each image as a batch, and the logarithm of its probabilities: float32 (1, classes); its name goes to `names`.

    Raises:
        DataError: an image is bad, or so long that a view of it would be too large.
        UserError: a scale is smaller than the network's images, or the network cannot be dense.
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
        parts = []
        for scale in views.scales or (None,):
            whole = torch.from_numpy(pixels_of(_resized(classifier, image, scale, sample.name))).to(device)
            if dense is not None:
                parts.append(_probabilities(dense, whole[None], classifier))
            if views.kind != "dense":
                crops = _crops(whole, how.image_size, GRID if "crop" in views.kind else 1)
                parts.append(_probabilities(classifier.fast, crops, classifier))
        seen = torch.from_numpy(fitted(image, how, sample.name)).to(device)[None]
        yield Batch(seen, torch.tensor([sample.label], device=device), slice(0, 1), 1), torch.stack(parts).mean(0).log()


def _dense(classifier: Classifier) -> nn.Module:
    """The network with convolutions for fully connected layers, which takes images of any size."""
    net = classifier.net
    if not isinstance(net, VGG):
        raise UserError(f"expected a VGG network for dense views, got {net.architecture.name}, try multi-crop")
    return classifier.fast if net.architecture.head in ("conv", "gap") else accelerate(with_head(net, "conv").eval())


def _resized(classifier: Classifier, image: Image.Image, scale: int | None, name: str) -> Image.Image:
    """The image with a shorter side of `scale` pixels, or as the preprocessing resizes it."""
    how = classifier.preprocessing
    size = (how.image_size, how.image_size)
    if scale is not None or how.resize == "crop":
        shorter = scale or round(how.image_size / how.crop_fraction)
        width, height = (shorter * side // min(image.size) for side in image.size)
        if width * height > MAX_PIXELS:
            raise DataError(f"{name}: expected at most {MAX_PIXELS:,} pixels in a view, got {width} x {height}")
        size = (width, height)
    return image.resize(size, Image.Resampling[how.interpolation.upper()])


def _crops(whole: Tensor, size: int, grid: int) -> Tensor:
    """Squares of an image, uint8 (crops, channels, size, size): a grid of them, or the middle."""
    spans = [length - size for length in whole.shape[1:]]
    if grid == 1:
        places = [[round(span / 2)] for span in spans]
    else:
        places = [np.unique(np.linspace(0, span, grid).round().astype(int)).tolist() for span in spans]
    return torch.stack([whole[:, y : y + size, x : x + size] for y in places[0] for x in places[1]])


def _probabilities(net: nn.Module, pixels: Tensor, classifier: Classifier) -> Tensor:
    """The mean of the softmax outputs of some pixels, uint8 (views, channels, height, width), and of their mirrors."""
    x = classifier.preprocessing.normalize(pixels.float() / 255)
    x = torch.cat([x, x.flip(-1)])
    with gpu.half(x):
        logits: Tensor = net(x)
    return logits.float().softmax(dim=1).mean(dim=0, keepdim=True)
