"""The results of an evaluation: accuracy, overall and by class, confusions, mistakes and calibration."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vggkit.design.table import Table
from vggkit.inference.calibration import calibration_error

MAX_COLUMNS = 80
FEW_IMAGES = 100


class Mistake(NamedTuple):
    """An image that was misclassified, with the probability of the predicted class, 0 to 1."""

    name: str
    label: str
    predicted: str
    probability: float
    pixels: npt.NDArray[np.uint8]
    """(height, width, channels), as the network saw it."""


class Outputs(NamedTuple):
    """The outputs for each image that is counted."""

    names: tuple[str, ...]
    """The names of the images in the data: relative paths, rows of a file."""
    log_probabilities: npt.NDArray[np.float32]
    """(images, classes): natural logarithms."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The results of a network on labelled images."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """(images,): the true class of each image that could be read and whose class the network knows."""
    predicted: npt.NDArray[np.int64]
    """(images,): the most probable class."""
    measured_on: str = "images"
    """`test images of fashion-mnist`."""
    notes: tuple[str, ...] = ()
    """Lines on averaged views and on images that were left out."""
    mistakes: tuple[Mistake, ...] = ()
    """Those of the highest confidence, up to 24."""
    top5: float = math.nan
    """The share of images whose class is among the five most probable, 0 to 1."""
    confidence: npt.NDArray[np.float32] | None = None
    """(images,): the probability of the most probable class, 0 to 1."""
    outputs: Outputs | None = None
    """None unless `evaluate` kept them."""

    @property
    def accuracy(self) -> float:
        """Top-1: the share of images that were classified right, 0 to 1."""
        return float((self.labels == self.predicted).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the accuracy."""
        return interval_of(int((self.labels == self.predicted).sum()), len(self.labels))

    @property
    def summary(self) -> str:
        """The accuracy and its interval as text."""
        low, high = self.interval
        return f"accuracy {self.accuracy:.4f} (95%: {low:.3f} to {high:.3f})"

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1; see `calibration.calibration_error`."""
        if self.confidence is None:
            return math.nan
        return calibration_error(self.confidence, self.labels == self.predicted)

    @property
    def errors(self) -> str:
        """The top-1 and top-5 errors in percent, as the paper prints them, and the calibration error, as text."""
        top5 = f", top-5 {1 - self.top5:.1%}" * (len(self.classes) > 5)
        ece = f"expected calibration error (ECE) {self.calibration_error:.1%}"
        return f"error: top-1 {1 - self.accuracy:.1%}{top5}; {ece}"

    @property
    def class_counts(self) -> list[tuple[int, int]]:
        """For each class, the number of its images that were classified right, and of all its images."""
        chosen = (self.labels[self.labels == self.predicted], self.labels)
        right, images = (np.bincount(labels, minlength=len(self.classes)).tolist() for labels in chosen)
        return list(zip(right, images, strict=True))

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """For each class, the share of its images that were classified right (its recall); None if it has none."""
        return tuple(right / images if images else None for right, images in self.class_counts)

    @property
    def class_intervals(self) -> tuple[tuple[float, float] | None, ...]:
        """The 95% confidence interval of each class's accuracy; None if it has no images."""
        return tuple(interval_of(right, images) if images else None for right, images in self.class_counts)

    @cached_property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes): the number of images of the row's class that were classified as the column's."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predicted, minlength=size**2).reshape(size, size)

    def table(self) -> Table:
        """The accuracy by class, with the confusion matrix if it fits into 80 columns, else the largest confusion."""
        title = f"{self.summary} on the {len(self.labels):,} {self.measured_on}"
        names, scores = self.classes, [_score(*counts) for counts in self.class_counts]
        notes = self.notes if self.confidence is None else (self.errors, *self.notes)
        count_columns = (1 + max(len(str(images)) for _, images in self.class_counts)) * len(names)
        if max(map(len, names)) + max(map(len, scores)) + count_columns <= MAX_COLUMNS - 4:
            rows = [
                (f"{index} {names[index]}", scores[index], *(str(n) if n else "." for n in row))
                for index, row in enumerate(self.confusion.tolist())
            ]
            note = "a row: a true class; below a number: its images taken for that number's class"
            return Table(("class", "accuracy", *map(str, range(len(names)))), [rows], 1, title, [*notes, note])
        rows = []
        for index in np.unique(self.labels).tolist():
            wrong = np.bincount(self.predicted[self.labels == index], minlength=len(names))
            wrong[index] = 0
            other = int(wrong.argmax())
            confusion = (names[other], f"{wrong[other]:,}") if wrong[other] else ("", "")
            rows.append((names[index], scores[index], *confusion))
        return Table(("class", "accuracy", "most taken for", "times"), [rows], 3, title, notes)

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def interval_of(right: int, images: int) -> tuple[float, float]:
    """The 95% confidence interval of the share `right` / `images`, 0 to 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    >>> [round(bound, 3) for bound in interval_of(5, 6)]
    [0.436, 0.97]
    """
    z, share = 1.959964, right / images
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, (middle - half) / (1 + z**2 / images)), min(1.0, (middle + half) / (1 + z**2 / images))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that two classifiers err alike, from the images that only one of them gets right.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact by the
    binomial distribution.

    >>> round(mcnemar(5, 15), 4)
    0.0414
    """
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**total))


def _score(right: int, images: int) -> str:
    if not images:
        return "-"
    low, high = interval_of(right, images)
    return f"{right / images:.1%} of {images:,}" + f" ({low:.0%} to {high:.0%})" * (images < FEW_IMAGES)
