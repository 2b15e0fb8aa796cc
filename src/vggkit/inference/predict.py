"""A weight file and an image to class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vggkit.data.imagenet import class_names
from vggkit.data.images import read_image
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.network import costs
from vggkit.engines.fully_connected import fast_cpu
from vggkit.errors import DataError, WeightsError
from vggkit.networks.baselines import BaselineNetwork
from vggkit.networks.vgg import VGG
from vggkit.training.run_weights import find_weights
from vggkit.weights.files import load_weights, metadata_list

MAX_ACTIVATION_BYTES = 2**31
"""A weight file that says its network needs more for one image is refused; VGG-19 at 224 needs 0.1 GB."""


@dataclass(frozen=True)
class Classifier:
    """A trained network with all it takes to use it, from one file."""

    net: VGG | BaselineNetwork
    """In evaluation mode."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Prediction:
    """One class and how probable the network finds it."""

    label: str
    probability: float
    """0 to 1, by softmax."""


def load_classifier(run: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The network of a run folder, of a weight file, or of published weights.

    Args:
        run: a run folder; a weight file of vggkit, torchvision, timm, Keras or Caffe, see `load_weights`; or a name
            such as `torchvision/vgg16`, whose file is fetched into the user's cache unless it lies there.
        device: where to put it.

    Raises:
        WeightsError: there is none, it is damaged, or it does not say how to prepare an image for it.
    """
    path = find_weights(run)
    net, metadata = load_weights(path, device)
    try:
        if "preprocessing" not in metadata:
            raise WeightsError(
                "expected weights that say how to prepare an image, got none, try 'vgg weights convert --preprocessing'"
            )
        known = (
            metadata_list(metadata, "classes") if "classes" in metadata else class_names(net.architecture.num_classes)
        )
        classes, preprocessing = tuple(known), Preprocessing.from_json(metadata["preprocessing"])
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    arch = net.architecture
    if (len(classes), preprocessing.channels, preprocessing.image_size) != (
        arch.num_classes, arch.in_channels, arch.image_size,
    ):  # fmt: skip
        raise WeightsError(f"{path}: expected classes and preprocessing that fit the architecture, got others")
    activation_bytes = costs(arch).total.activation_bytes
    if activation_bytes > MAX_ACTIVATION_BYTES:
        raise WeightsError(
            f"{path}: expected a network whose activations take at most {MAX_ACTIVATION_BYTES:,} bytes for an image, "
            f"got {activation_bytes:,}"
        )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Classifier(net, classes, preprocessing)


def prepared(classifier: Classifier, image: str | Path) -> Tensor:
    """An image file as the network's input, (1, channels, image_size, image_size), on its device.

    Raises:
        DataError: the file is missing, is not a whole image, or takes too much memory; it is named.
    """
    pixels = read_image(Path(image), classifier.preprocessing.channels)
    try:
        return classifier.preprocessing(pixels.to(next(classifier.net.parameters()).device).unsqueeze(0))
    except ValueError as error:
        raise DataError(f"{image}: {error}") from None


@torch.no_grad()
def predict(classifier: Classifier, images: Sequence[str | Path], top: int = 3) -> list[list[Prediction]]:
    """The `top` classes of each image file, the most probable first.

    Args:
        classifier: from `load_classifier`.
        images: PNG, JPEG, WebP, GIF, BMP or TIFF files of any size and mode; they are read and predicted one at a time.
        top: classes wanted; all, if there are fewer.

    Raises:
        DataError: a file is missing or is not a whole image; it is named.
        WeightsError: the weights are not finite.
    """
    if top < 1:
        raise ValueError(f"expected a top from 1, got {top}")
    predictions = []
    with fast_cpu(classifier.net):
        for path in images:
            probabilities = classifier.net(prepared(classifier, path))[0].softmax(dim=0)
            if not probabilities.isfinite().all():
                raise WeightsError(
                    f"expected weights that give probabilities, got {probabilities[0].item()} for {path}"
                )
            values, indices = probabilities.topk(min(top, len(classifier.classes)))
            predictions.append(
                [Prediction(classifier.classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]
            )
    return predictions
