"""Loading of trained networks, and class probabilities of images."""

import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vggkit.data.imagenet import class_names
from vggkit.data.preprocessing import Preprocessing
from vggkit.design.network import costs
from vggkit.engines.accelerate import Accelerated, accelerate
from vggkit.errors import DataError, WeightsError, check_type, shown
from vggkit.inference.images import Images, batches, is_several
from vggkit.weights.files import AnyNetwork, load_weights, metadata_list
from vggkit.weights.preparation import preprocessing_for
from vggkit.weights.runs import find_weights

MAX_ACTIVATION_BYTES = 2**31
"""Weight files of networks that need more than this for one image are refused; VGG-19 at 224 needs 0.1 GB."""

BATCH_IMAGES, BATCH_BYTES = 64, 2**30
"""Limits of a batch: the number of images, and the bytes of their activations."""

MIRRORED = "mean of the image and its mirror image"
"""A note for probabilities with `Preprocessing.test_flip`."""


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float
    """0 to 1, by softmax."""

    def __repr__(self) -> str:
        return f"{self.label} {self.probability:.1%}"


@dataclass(frozen=True, repr=False)
class Classifier:
    """A trained network with its classes and preprocessing; call it with images to `predict`."""

    net: AnyNetwork
    """In evaluation mode."""
    classes: tuple[str, ...]
    """Empty if the weight file has no fully connected layers; the network then only gives features of its blocks."""
    preprocessing: Preprocessing
    source: str = "memory"
    temperature: float = 1.0
    """The divisor of its logits, already folded into the weights, if it was calibrated."""

    def __call__(self, images: Images, top: int = 3) -> list[Any]:
        """See `predict`."""
        return predict(self, images, top)

    def __repr__(self) -> str:
        arch = self.net.architecture
        return (
            f"{arch.name}: {few(self.classes)}, {arch.in_channels} x {arch.image_size} x {arch.image_size} pixels, "
            f"{costs(arch).total.parameters:,} parameters, on {self.device}, from {shown(self.source, limit=500)}"
        )

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"

    @functools.cached_property
    def fast(self) -> Accelerated:
        """`net`, accelerated for this machine."""
        return accelerate(self.net)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.net.parameters()).device

    def inputs(
        self, images: Images, on_bad: Callable[[DataError], None] | None = None
    ) -> Iterator[tuple[list[str], Tensor]]:
        """The names of images and the network's input for them, in batches that fit into memory; see `batches`."""
        fitting = max(1, BATCH_BYTES // costs(self.net.architecture).total.activation_bytes)
        for names, pixels in batches(images, self.preprocessing, min(BATCH_IMAGES, fitting), on_bad):
            yield names, self.preprocessing.scaled(pixels.to(self.device))

    def check_has_classes(self) -> None:
        """Raise `WeightsError` if there are no classes."""
        if not self.classes:
            raise WeightsError(
                f"expected weights with fully connected layers of a VGG, got {self.source} without, try 'vgg features' "
                "for the layers of its blocks, or 'vgg train --recipe finetune --head gap --hidden' to train new ones"
            )


AnyModel = Classifier | str | os.PathLike[str]


def load_classifier(
    run: AnyModel,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = lambda line: None,
    **preparation: Any,
) -> Classifier:
    """Load the trained network of a run, of a weight file or of published weights.

    Args:
        run: what `train` returned, or its folder; a weight file, see `load_weights`; or a name such as
            `torchvision/vgg16`, which is downloaded into the user's cache. A classifier is returned as it is.
        device: of the network.
        report: called with a line about a download, or about a preprocessing guessed from the names in the file.
        preparation: `mean`, `std`, `order` or `preprocessing` instead of the file's, see `preprocessing_for`.

    Raises:
        WeightsError: it is missing or damaged, or its preprocessing is unknown.
    """
    if isinstance(run, Classifier):
        return run
    example = "Classifier(net, classes, preprocessing) for a network in memory"
    check_type(run, str | os.PathLike, "a run, a weight file or a classifier", example)
    path = find_weights(run, report)
    net, metadata = load_weights(path, device)
    try:
        preprocessing = preprocessing_for(net, metadata, report, **preparation)
        if preprocessing is None:
            raise WeightsError("expected weights that say how to prepare an image, got none, try --mean and --std")
        has_names = "classes" in metadata
        classes = tuple(metadata_list(metadata, "classes") if has_names else class_names(net.architecture.num_classes))
        arch, temperature = net.architecture, float(metadata.get("temperature", 1))
        input_fits = (preprocessing.channels, preprocessing.image_size) == (arch.in_channels, arch.image_size)
        if not input_fits or len(classes) not in (0, arch.num_classes):
            raise WeightsError("expected classes and preprocessing that fit the architecture, got others")
        if not 0 < temperature < math.inf:
            raise WeightsError(f"expected a temperature above 0, got {temperature}")
        activation_bytes = costs(arch).total.activation_bytes
        if activation_bytes > MAX_ACTIVATION_BYTES:
            raise WeightsError(
                f"expected a network whose activations take at most {MAX_ACTIVATION_BYTES:,} bytes for an image, got "
                f"{activation_bytes:,}"
            )
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return Classifier(net, classes, preprocessing, str(path), temperature)


def predict(model: AnyModel, images: Images, top: int = 3) -> list[Any]:
    """The `top` classes of each image, the most probable first.

    Args:
        model: a classifier, or what `load_classifier` takes.
        images: one image: a path, the bytes or the open file of a PNG, JPEG, WebP, GIF, BMP or TIFF of any size and
            mode, an image of Pillow's, a uint8 array (height, width[, channels]) or a tensor (channels, height,
            width), uint8 or float in [0, 1]; or a list of these, or a folder, which are predicted in batches.
        top: number of classes; all, if there are fewer.

    Returns:
        A list of `Prediction` for one image, a list of such lists for several.

    Raises:
        DataError: an image is missing or damaged, or is none; the message names it.
        WeightsError: the probabilities are not finite.
    """
    results = [best for _, best in predictions(model, images, top)]
    return results if is_several(images) else results[0]


@torch.no_grad()
def predictions(
    model: AnyModel, images: Images, top: int = 3, on_bad: Callable[[DataError], None] | None = None
) -> Iterator[tuple[str, list[Prediction]]]:
    """The name of each image and its `top` classes; bad images are left out and passed to `on_bad`, if given."""
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"expected a top from 1, got {top!r}")
    classifier = load_classifier(model)
    classifier.check_has_classes()
    for names, x in classifier.inputs(images, on_bad):
        probabilities = class_logits(classifier.fast, x, classifier.preprocessing).softmax(dim=1)
        check_finite(probabilities, names, "probabilities")
        values, indices = probabilities.topk(min(top, len(classifier.classes)))
        for name, row, labels in zip(names, values.tolist(), indices.tolist(), strict=True):
            yield name, [Prediction(classifier.classes[i], p) for i, p in zip(labels, row, strict=True)]


def class_logits(net: nn.Module, x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The logits of `net` for the input `x`, with `test_flip` averaged over mirror images: (images, classes)."""
    logits: Tensor = net(x)
    return (logits + net(x.flip(-1))) / 2 if preprocessing.test_flip else logits


def check_finite(outputs: Tensor, names: list[str], what: str) -> None:
    """Raise `WeightsError`, with the name of the first such image, unless all `outputs` are finite."""
    is_finite = outputs.flatten(1).isfinite().all(dim=1)
    if not is_finite.all():
        name = names[is_finite.tolist().index(False)]
        raise WeightsError(f"expected weights that give finite {what}, got others for {name}, try other weights")


def few(names: tuple[str, ...]) -> str:
    """The number of classes and the first names, for messages."""
    return f"{len(names):,} classes ({shown(', '.join(names[:3]))}{', ...' * (len(names) > 3)})"
