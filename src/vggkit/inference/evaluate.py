"""A weight file and a labelled data set to accuracy, by class and confused with what."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from vggkit.data.feed import Whole, network_input, open_feed
from vggkit.data.files import as_png, write_whole
from vggkit.data.images import FittedImage
from vggkit.data.samples import IGNORED_LABEL, ImageSource
from vggkit.errors import DataError
from vggkit.inference.predict import Classifier, check_has_classes

MAX_DRAWN_CLASSES = 40


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a labelled set."""

    classes: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    """(classes, classes): images of the row's class that were taken for the column's."""

    @property
    def accuracy(self) -> float:
        """Top-1: the share of all images that were classified right, 0 to 1."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """For each class, the share of its images that were classified right (its recall); None if it has none."""
        right, counts = self.confusion.diagonal().tolist(), self.confusion.sum(axis=1).tolist()
        return tuple(r / n if n else None for r, n in zip(right, counts, strict=True))


@torch.no_grad()
def evaluate(
    classifier: Classifier,
    data: ImageSource,
    batch_size: int = 128,
    num_workers: int = 0,
    bad_images: Literal["fail", "skip"] = "fail",
) -> Evaluation:
    """The confusion of `classifier` on the test or validation images of `data`, on the network's device.

    Args:
        classifier: from `load_classifier`.
        data: from `open_data`.
        batch_size: images together.
        num_workers: threads that decode image files ahead.
        bad_images: what to do with files that are no images or broken: fail, or skip, which counts them nowhere.

    Raises:
        DataError: the data set has other classes than the network knows, or holds a bad image.
        LoadingError: images cannot be loaded for another reason than a bad file.
    """
    check_has_classes(classifier)
    if data.classes != classifier.classes:
        raise DataError(f"expected data of {_listed(classifier.classes)}, got {_listed(data.classes)}")
    if batch_size < 1:
        raise ValueError(f"expected a batch_size from 1, got {batch_size}")
    num_classes = len(classifier.classes)
    counts = torch.zeros(num_classes**2, dtype=torch.int64, device=_device(classifier))
    preprocessing = classifier.preprocessing
    read = FittedImage(preprocessing.channels, preprocessing)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bad_images": bad_images}
    feed = open_feed(data.held_out, read, Whole(_device(classifier)), **options)
    for batch in feed.batches(epoch=0):
        predicted = classifier.fast(network_input(feed, batch.images, preprocessing)).argmax(dim=1)
        is_counted = batch.labels != IGNORED_LABEL
        counts += torch.bincount((batch.labels * num_classes + predicted)[is_counted], minlength=num_classes**2)
    return Evaluation(classifier.classes, counts.view(num_classes, num_classes).cpu().numpy())


def _device(classifier: Classifier) -> torch.device:
    return next(classifier.net.parameters()).device


def _listed(classes: tuple[str, ...]) -> str:
    """Classes for an error message."""
    return f"{len(classes):,} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix, each row in percent of its class, into a PNG file at `path`.

    Of more than `MAX_DRAWN_CLASSES` classes it shows numbers instead of names, and colours alone.
    """
    from matplotlib.figure import Figure

    classes, counts = evaluation.classes, evaluation.confusion
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    has_room = len(classes) <= MAX_DRAWN_CLASSES
    side = 2.5 + 0.55 * min(len(classes), MAX_DRAWN_CLASSES)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if has_room:
        for row, column in np.argwhere(counts).tolist():
            color = "white" if percent[row, column] > 50 else "black"
            text = f"{percent[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"accuracy {evaluation.accuracy:.4f} on {counts.sum():,} images",
    )
    figure.colorbar(image, label="% of the class", shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        picture = as_png(figure)
    write_whole(path, picture)
