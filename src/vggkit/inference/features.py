"""An image file to what the named layers of a network put out for it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vggkit.inference.predict import Classifier, prepared
from vggkit.networks.vgg import VGG


@torch.no_grad()
def features(classifier: Classifier, image: str | Path, layers: Sequence[str]) -> dict[str, Tensor]:
    """What the named layers of a network put out for an image file, prepared as its weights want it.

    Args:
        classifier: from `load_classifier`.
        image: a PNG, JPEG, WebP, GIF, BMP or TIFF file of any size and mode.
        layers: canonical names, such as `relu3_3`, see `VGG.features`, which this calls; use that for gradients.

    Returns:
        By name, in the order asked for: (1, channels, height, width), or (1, features) behind `flatten`.

    Raises:
        DataError: the file is missing or is not a whole image; it is named.
        ValueError: a layer that the network has not; or the network is LeNet or AlexNet.
    """
    net = classifier.net
    if not isinstance(net, VGG):
        raise ValueError(f"expected a VGG network, got {net.architecture.name}")
    return net.features(prepared(classifier, image), layers)
