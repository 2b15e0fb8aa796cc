"""The calibration error of a network, and a temperature that lowers it.

Source: Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", arXiv 1706.04599.
"""

import copy
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vggkit.errors import DataError
from vggkit.inference.predict import Classifier
from vggkit.weights.files import save_weights

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Beyond these, the images do not determine a temperature."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bin:
    """The images in one range of confidence."""

    images: int
    confidence: float
    """Their mean probability of the predicted class, 0 to 1."""
    right: int
    """Number of them that were classified right."""


def reliability(confidence: Floats, is_right: npt.NDArray[np.bool_]) -> list[Bin]:
    """The images in 15 equal ranges of confidence, (0, 1/15] to (14/15, 1], without empty ranges.

    Both arguments are (images,).
    """
    bin_of_image = np.clip(np.ceil(confidence * NUM_BINS), 1, NUM_BINS).astype(int)
    masks = [bin_of_image == number for number in np.unique(bin_of_image)]
    return [Bin(int(mask.sum()), float(confidence[mask].mean()), int(is_right[mask].sum())) for mask in masks]


def calibration_error(confidence: Floats, is_right: npt.NDArray[np.bool_]) -> float:
    """The expected calibration error (ECE), 0 to 1: |accuracy - confidence| of each bin, weighted by its images."""
    return sum(abs(b.right - b.confidence * b.images) for b in reliability(confidence, is_right)) / len(confidence)


@dataclass(frozen=True, repr=False)
class Temperature:
    """A divisor of the logits, and its effect on the calibration error."""

    value: float
    error_before: float
    """The calibration error without it, 0 to 1."""
    error_after: float
    """The calibration error with temperatures fitted on the other half of the images, 0 to 1."""
    already: float = 1.0
    """The temperature that is already folded into the network."""

    @property
    def total(self) -> float:
        """The divisor of the logits of the network as it was trained."""
        return self.already * self.value

    def __repr__(self) -> str:
        again = f" (calibrated already: {self.already:.3f} times {self.value:.3f})" * (self.already != 1)
        return (
            f"temperature {self.total:.3f}{again}; ECE {self.error_before:.1%}, with temperatures fitted on the other "
            f"half of the images {self.error_after:.1%}"
        )


def fit_temperature(log_probabilities: Floats, labels: npt.NDArray[np.int64], already: float = 1.0) -> Temperature:
    """The temperature of maximum likelihood.

    Args:
        log_probabilities: (images, classes); logits will do.
        labels: (images,): the true classes.
        already: the temperature that is already folded into the network.

    Raises:
        DataError: fewer than two images, or too few mistakes or right answers to determine a temperature.
    """
    if len(labels) < 2:
        raise DataError(f"expected two images or more to fit a temperature on, got {len(labels)}")
    z = torch.from_numpy(log_probabilities).double().clamp_(min=-1e4)
    true, confidence = torch.from_numpy(labels), torch.empty(len(labels), dtype=torch.float64)
    for fitted, measured in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        probabilities = (z[measured] / _max_likelihood(z[fitted], true[fitted])).softmax(dim=1)
        confidence[measured] = probabilities.max(dim=1).values
    is_right = (z.argmax(dim=1) == true).numpy()
    before = z.softmax(dim=1).max(dim=1).values.numpy()
    error, calibrated_error = (calibration_error(c, is_right) for c in (before, confidence.numpy()))
    return Temperature(_max_likelihood(z, true), error, calibrated_error, already)


def _max_likelihood(z: torch.Tensor, labels: torch.Tensor) -> float:
    """Newton's method in 1 / temperature, in which the negative log likelihood is convex."""
    z_true, scale = z.gather(1, labels[:, None])[:, 0], 1.0
    for _ in range(50):
        p = (scale * z).softmax(dim=1)
        mean = (p * z).sum(dim=1)
        slope, curvature = (mean - z_true).mean().item(), ((p * z * z).sum(dim=1) - mean**2).mean().item()
        step = slope / max(curvature, 1e-12)
        scale, before = min(max(scale - step, scale / 2, 0.5 / MAX_TEMPERATURE), 2 * scale, 2 / MIN_TEMPERATURE), scale
        if abs(scale - before) < 1e-9 * scale:
            break
    if not MIN_TEMPERATURE <= 1 / scale <= MAX_TEMPERATURE:
        raise DataError(
            f"expected images that a temperature from {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g} fits, got others, "
            "too few of them or with too few mistakes, try more images that were not trained on"
        )
    return 1 / scale


def save_calibrated(path: str | os.PathLike[str], classifier: Classifier, temperature: Temperature) -> None:
    """Write the network of `classifier` with all logits divided by `temperature`.

    The weights of the last layer are divided, so that every reader of the file gives calibrated probabilities; the
    file's metadata holds the total as `temperature`.

    Raises:
        WeightsError: as `save_weights`.
    """
    net = copy.deepcopy(classifier.net)
    # Where a head has a ReLU or an average after the last layer, these commute with a positive factor.
    last: Any = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    for parameter in last.parameters():
        parameter.data /= temperature.value
    metadata = {"classes": json.dumps(classifier.classes), "preprocessing": classifier.preprocessing.to_json()}
    save_weights(path, net, {**metadata, "temperature": repr(temperature.total)})
