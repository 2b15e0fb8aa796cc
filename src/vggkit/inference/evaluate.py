"""A trained network and labelled images to its accuracy, by class, confused with what, and how sure that is."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vggkit.data.feed import Batch, Feed, LoaderFeed, Whole, network_input, open_feed
from vggkit.data.images import FittedImage
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL, ArrayImages, Images, ImageSource, split_named
from vggkit.data.sources import open_data
from vggkit.design.table import Table
from vggkit.engines import gpu
from vggkit.errors import DataError, WeightsError, check_type, shown
from vggkit.inference.classes import matched_classes
from vggkit.inference.predict import AnyModel, Classifier, class_logits, load_classifier
from vggkit.inference.views import Views, viewed

NUM_MISTAKES = 12
MAX_NOTES = 3
MAX_COLUMNS = 80
FEW_IMAGES = 100


class Mistake(NamedTuple):
    """An image that was taken for another class, with the probability of that class, 0 to 1."""

    name: str
    label: str
    predicted: str
    probability: float
    pixels: npt.NDArray[np.uint8]
    """(height, width, channels), as the network saw it."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How a network does on labelled images."""

    classes: tuple[str, ...]
    """Of the network."""
    labels: npt.NDArray[np.int64]
    """(images,): the true class of each image that could be read and whose class the network knows."""
    predicted: npt.NDArray[np.int64]
    """(images,): the most probable class."""
    measured_on: str = "images"
    """`test images of fashion-mnist`."""
    notes: tuple[str, ...] = ()
    """Lines on what was left out."""
    mistakes: tuple[Mistake, ...] = ()
    """Those that the network was surest of, up to 12."""
    top5: float = math.nan
    """The share of all images whose class is among the five most probable, 0 to 1."""

    @property
    def accuracy(self) -> float:
        """Top-1: the share of all images that were classified right, 0 to 1."""
        return float((self.labels == self.predicted).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the accuracy."""
        return interval_of(int((self.labels == self.predicted).sum()), len(self.labels))

    @property
    def summary(self) -> str:
        """The accuracy and its interval in words."""
        low, high = self.interval
        return f"accuracy {self.accuracy:.4f} (95%: {low:.3f} to {high:.3f})"

    @property
    def class_counts(self) -> list[tuple[int, int]]:
        """For each class, how many of its images were classified right, and how many it has."""
        chosen = (self.labels[self.labels == self.predicted], self.labels)
        right, images = (np.bincount(labels, minlength=len(self.classes)).tolist() for labels in chosen)
        return list(zip(right, images, strict=True))

    @property
    def class_accuracy(self) -> tuple[float | None, ...]:
        """For each class, the share of its images that were classified right (its recall); None if it has none."""
        return tuple(right / images if images else None for right, images in self.class_counts)

    @cached_property
    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes): images of the row's class that were taken for the column's."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predicted, minlength=size**2).reshape(size, size)

    def table(self) -> Table:
        """The accuracy in each class; what is confused with what, if that fits into 80 columns, else the most of it."""
        title = f"{self.summary} on the {len(self.labels):,} {self.measured_on}"
        names, scores = self.classes, [_score(*counts) for counts in self.class_counts]
        count_columns = (1 + max(len(str(images)) for _, images in self.class_counts)) * len(names)
        if max(map(len, names)) + max(map(len, scores)) + count_columns <= MAX_COLUMNS - 4:
            rows = [
                (f"{index} {names[index]}", scores[index], *(str(n) if n else "." for n in row))
                for index, row in enumerate(self.confusion.tolist())
            ]
            note = "a row: a true class; below a number: its images taken for that number's class"
            return Table(("class", "accuracy", *map(str, range(len(names)))), [rows], 1, title, [*self.notes, note])
        rows = []
        for index in np.unique(self.labels).tolist():
            wrong = np.bincount(self.predicted[self.labels == index], minlength=len(names))
            wrong[index] = 0
            most = int(wrong.argmax())
            taken_for = (names[most], f"{wrong[most]:,}") if wrong[most] else ("", "")
            rows.append((names[index], scores[index], *taken_for))
        return Table(("class", "accuracy", "most taken for", "times"), [rows], 3, title, self.notes)

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def interval_of(right: int, images: int) -> tuple[float, float]:
    """The 95% confidence interval of a share, `right` of `images`, 0 to 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    >>> [round(bound, 3) for bound in interval_of(5, 6)]
    [0.436, 0.97]
    """
    z, share = 1.959964, right / images
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return max(0.0, (middle - half) / (1 + z**2 / images)), min(1.0, (middle + half) / (1 + z**2 / images))


def _score(right: int, images: int) -> str:
    """The share that is right, with its interval if there are few images."""
    if not images:
        return "-"
    low, high = interval_of(right, images)
    return f"{right / images:.1%} of {images:,}" + f" ({low:.0%} to {high:.0%})" * (images < FEW_IMAGES)


def evaluate(
    model: AnyModel,
    data: ImageSource | str | os.PathLike[str] | None = None,
    split: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    bad_images: Literal["fail", "skip"] = "fail",
    views: Views | None = None,
) -> Evaluation:
    """How a network does on labelled images, on its device.

    Classes are matched by name, by synset or by number, see `matched_classes`; images of other classes do not count.

    Args:
        model: a classifier, or what `load_classifier` takes.
        data: from `open_data`; or what that takes, of which nothing is kept out: a folder with a folder for each class
            is measured whole, and of several splits it is `test`, else `validation`. By default, the data of the run.
        split: `train`, `validation`, `test`, or `all` splits together; by default what `data` holds out.
        batch_size: images together.
        num_workers: threads that decode image files ahead.
        bad_images: what to do with files that are damaged or no images: fail, or skip them, which a note then says.
        views: views of each image whose probabilities are averaged, see `Views`; a bad image is then always an error.

    Raises:
        DataError: the data has no class that the network knows, or no such split, or holds a bad image.
        LoadingError: images cannot be loaded for another reason than a bad file.
        WeightsError: the weights give values that are not finite.
    """
    classifier = load_classifier(model)
    classifier.check_has_classes()
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a batch_size from 1, got {batch_size!r}")
    if data is None:
        data = data_of_run(Path(classifier.source if isinstance(model, Classifier) else model))
    check_type(data, ImageSource | str | os.PathLike, "labelled images", "open_data('photos'), or their folder")
    check_type(split, str | None, "the name of a split", "'test'")
    source = data if isinstance(data, ImageSource) else open_data(data, holdout=0)
    default = source.held_out_name if isinstance(data, ImageSource) else default_split(source)
    name = (split_named(split) or split) if split else default
    if name != "all" and name not in source.splits:
        known = ", ".join(dict.fromkeys([*source.splits, "all"]))
        raise DataError(f"{source.name}: expected a split of {known}, got {split!r}")
    matches = matched_classes(classifier.classes, source.classes)
    # The last entry is for what is ignored already, whose label is negative.
    table = torch.tensor([IGNORED_LABEL if match is None else match for match in [*matches, None]])
    measured, mistakes, bad = list[Tensor](), list[Mistake](), dict[str, str]()
    for images in source.splits.values() if name == "all" else [source.splits[name]]:
        read = FittedImage(classifier.preprocessing)
        options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bad_images": bad_images}
        feed = open_feed(images, read, Whole(classifier.device), **options)
        one = judged(classifier.fast, feed, classifier.preprocessing)
        outcome, surest = _outcome(viewed(classifier, images, views) if views else one, table.to(classifier.device))
        measured.append(outcome)
        mistakes += _mistakes(classifier, images, surest)
        bad |= feed.loader.bad if isinstance(feed, LoaderFeed) else {}
    given, labels, predicted, is_in_top5 = torch.cat(measured, dim=1).cpu().numpy()
    is_counted = labels != IGNORED_LABEL
    if not is_counted.any():
        raise DataError(f"{source.name}: expected an image to measure by that can be read, got none")
    unknown = Counter(source.classes[label] for label in given[(given != IGNORED_LABEL) & ~is_counted].tolist())
    measured_on = f"{name.removeprefix('all')} images of {source.name}".lstrip()
    notes = (
        *_listed("not counted, as the network has no such class", [f"{n:,} of {k}" for k, n in unknown.items()]),
        *_listed("not counted, as they are bad", [f"{image}: {reason}" for image, reason in bad.items()]),
    )
    surest_mistakes = tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)[:NUM_MISTAKES])
    top5 = float(is_in_top5[is_counted].mean())
    return Evaluation(
        classifier.classes, labels[is_counted], predicted[is_counted], measured_on, notes, surest_mistakes, top5
    )


def _listed(what: str, items: list[str]) -> list[str]:
    """A note on some items, of which it shows a few."""
    more = f"; and {len(items) - MAX_NOTES:,} more" * (len(items) > MAX_NOTES)
    return [f"{what}: {'; '.join(shown(item, limit=300) for item in items[:MAX_NOTES])}{more}"] * bool(items)


def default_split(source: ImageSource) -> str:
    """What is measured on of data that was not divided for a run: `test`, else `validation`, else all there is."""
    return next(name for name in ("test", "validation", "all", "train") if name in source.splits)


@torch.no_grad()
def judged(net: nn.Module, feed: Feed, preprocessing: Preprocessing) -> Iterator[tuple[Batch, Tensor]]:
    """All batches of `feed` in its order, each with the logits of `net`: float32 (images, classes).

    The network is left in evaluation mode.
    """
    net.eval()
    for batch in feed.batches(epoch=0):
        x = network_input(feed, batch.images, preprocessing)
        with gpu.half(x):
            logits = class_logits(net, x, preprocessing)
        yield batch, logits.float()


def data_of_run(model: Path) -> ImageSource:
    """The data of the run at, or around the weight file, `model`, divided as for its training."""
    path = (model if model.is_dir() else model.parent) / "recipe.json"
    if not path.is_file():
        raise DataError(
            f"{shown(model, 500)}: expected data to measure on, as this is no run, try evaluate(model, 'photos')"
        )
    try:
        recipe = json.loads(path.read_text())  # as the recipe, which stands above this room, writes it
        named = ("holdout", "seed", "stream", "epoch_images")
        source = open_data(recipe["data"], **{name: recipe[name] for name in named if name in recipe})
        kept_out = recipe.get("validation", 0)
        if kept_out and isinstance(source.train, ArrayImages):
            return replace(source, splits={"validation": source.train[-kept_out:]})
        return source
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        raise DataError(f"{shown(path, 500)}: expected the recipe of a run, got something else") from None


def _outcome(batches: Iterable[tuple[Batch, Tensor]], table: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a network makes of a split, as int64 (4, images).

    The rows are the labels of the data and of the network, what it said, and whether the label is among its first five.
    And the mistakes that it was surest of, as columns: probability, position, label, prediction and pixels. Nothing is
    asked of the device before the end.
    """
    columns, surest = list[Tensor](), list[Tensor]()
    start, is_finite = 0, torch.tensor(True, device=table.device)
    for batch, logits in batches:
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        is_finite &= probability.isfinite().all()
        labels = table[batch.labels.clamp(min=-1)]
        in_top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1)
        columns.append(torch.stack([batch.labels, labels, predicted, in_top5]))
        wrong = torch.where((labels != predicted) & (labels != IGNORED_LABEL), probability, 0)
        rows = wrong.topk(min(NUM_MISTAKES, len(wrong))).indices
        new = [wrong[rows], rows + start, labels[rows], predicted[rows], batch.images[rows]]
        both = [torch.cat(pair) for pair in zip(surest, new, strict=True)] if surest else new
        best = both[0].topk(min(NUM_MISTAKES, len(both[0]))).indices
        surest, start = [values[best] for values in both], start + len(labels)
    if not is_finite:
        raise WeightsError("expected weights that give finite outputs, got others, try other weights")
    return torch.cat(columns, dim=1), surest


def _mistakes(classifier: Classifier, images: Images, surest: list[Tensor]) -> Iterator[Mistake]:
    """The mistakes of a split, by name, from the columns of `_outcome`."""
    *numbers, pixels = (column.cpu() for column in surest)
    classes = classifier.classes
    for probability, position, label, predicted, shot in zip(*(some.tolist() for some in numbers), pixels, strict=True):
        if probability > 0:
            name = f"image {position}" if images.is_stream else images.reader(0, 0)(position).name
            yield Mistake(name, classes[label], classes[predicted], probability, shot.permute(1, 2, 0).numpy())
