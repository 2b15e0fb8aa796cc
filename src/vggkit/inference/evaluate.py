"""Evaluation of a trained network on labelled images."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vggkit.data.feed import Batch, Feed, LoaderFeed, Whole, network_input, open_feed
from vggkit.data.images import FittedImage
from vggkit.data.preprocessing import Preprocessing
from vggkit.data.samples import IGNORED_LABEL, ArrayImages, Images, ImageSource, Sample, split_named
from vggkit.data.sources import open_data
from vggkit.engines import gpu
from vggkit.errors import DataError, UserError, WeightsError, check_type, shown
from vggkit.inference.classes import matched_classes
from vggkit.inference.evaluation import Evaluation, Mistake, Outputs
from vggkit.inference.predict import MIRRORED, AnyModel, Classifier, class_logits, few, load_classifier
from vggkit.inference.views import Kind, Views, viewed

NUM_MISTAKES = 24
MAX_NOTES = 3


def evaluate(
    model: AnyModel | Sequence[AnyModel],
    data: ImageSource | str | os.PathLike[str] | None = None,
    split: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    bad_images: Literal["fail", "skip"] = "fail",
    views: Views | Kind | None = None,
    keep_outputs: bool = False,
) -> Evaluation:
    """Evaluate a network on labelled images, on its device.

    Classes are matched by name, synset or number, see `matched_classes`; images of other classes are not counted.

    Args:
        model: a classifier, or what `load_classifier` takes; or a list of several with the same classes, whose
            probabilities are averaged.
        data: from `open_data`, or its argument, of which nothing is then held out: a folder with a folder for each
            class is measured whole, and of several splits `test`, else `validation`. By default, the data of the
            (first) run.
        split: `train`, `validation`, `test`, or `all` splits together; by default the held-out one of `data`.
        batch_size: images in a batch.
        num_workers: threads that decode image files ahead.
        bad_images: what to do with files that are damaged or no images: fail, or skip them with a note.
        views: views of each image whose probabilities are averaged, see `Views`, or their kind; a bad image is then
            always an error.
        keep_outputs: fill in `Evaluation.outputs`, which takes 4 bytes for each class of each image.

    Raises:
        DataError: the data has no class that the network knows, no such split, or a bad image.
        LoadingError: images cannot be loaded for a reason other than a bad file.
        WeightsError: the outputs are not finite, or several models have different classes.
    """
    models: list[Any] = list(model) if isinstance(model, list | tuple) else [model]
    classifiers = _load_all(models)
    classifier = classifiers[0]
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a batch_size from 1, got {batch_size!r}")
    if not isinstance(num_workers, int) or num_workers < 0:
        raise UserError(f"expected num_workers from 0, got {num_workers!r}, try 4")
    if bad_images not in ("fail", "skip"):
        raise UserError(f"expected bad_images as fail or skip, got {bad_images!r}, try 'skip'")
    views = Views(views) if isinstance(views, str) else views
    check_type(views, Views | None, "views of images", "Views('flip')")
    if data is None:
        data = data_of_run(Path(classifier.source if isinstance(models[0], Classifier) else models[0]))
    source, split_name = _choose_split(data, split)
    matches = matched_classes(classifier.classes, source.classes)
    # The last entry is for images that are ignored already, whose label is -1.
    label_table = torch.tensor([IGNORED_LABEL if match is None else match for match in [*matches, None]])
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bad_images": bad_images}
    results, mistakes, names, bad = list[_SplitResult](), list[Mistake](), list[str](), dict[str, str]()
    for images in source.splits.values() if split_name == "all" else [source.splits[split_name]]:
        split_names = {position: f"image {position}" for position in range(len(images))}  # images in arrays have none
        streams = [_outputs(c, images, views, options, bad, split_names) for c in classifiers]
        batches = _averaged(streams) if len(streams) > 1 else streams[0]
        results.append(_measure_split(batches, label_table.to(classifier.device), keep_outputs))
        mistakes += _mistakes(classifier, split_names, results[-1].mistakes)
        names += split_names.values()
    data_labels, labels, predicted, is_in_top5 = torch.cat([r.columns for r in results], dim=1).cpu().numpy()
    is_counted = labels != IGNORED_LABEL
    if not is_counted.any():
        raise DataError(f"{source.name}: expected an image to measure by that can be read, got none")
    unknown = data_labels[(data_labels != IGNORED_LABEL) & ~is_counted]
    outputs = None
    if keep_outputs:
        log_probabilities = torch.cat([log_p for r in results for log_p in r.log_probabilities]).numpy()
        outputs = Outputs(tuple(compress(names, is_counted)), log_probabilities[is_counted])
    return Evaluation(
        classifier.classes,
        labels[is_counted],
        predicted[is_counted],
        measured_on=f"{split_name.removeprefix('all')} images of {source.name}".lstrip(),
        notes=_notes(classifiers, views, [source.classes[label] for label in unknown], bad),
        mistakes=tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)[:NUM_MISTAKES]),
        top5=float(is_in_top5[is_counted].mean()),
        confidence=torch.cat([r.confidence for r in results]).cpu().numpy()[is_counted],
        outputs=outputs,
    )


def _load_all(models: list[AnyModel]) -> list[Classifier]:
    if not models:
        raise UserError("expected a model to evaluate, got an empty list")
    classifiers = [load_classifier(model) for model in models]
    first = classifiers[0].classes
    for classifier in classifiers:
        classifier.check_has_classes()
        if classifier.classes != first:
            raise WeightsError(
                f"expected models of the same classes in the same order, got {few(first)} and "
                f"{few(classifier.classes)} in {shown(classifier.source, 500)}"
            )
    return classifiers


def _choose_split(data: ImageSource | str | os.PathLike[str], split: str | None) -> tuple[ImageSource, str]:
    check_type(data, ImageSource | str | os.PathLike, "labelled images", "open_data('photos'), or their folder")
    check_type(split, str | None, "the name of a split", "'test'")
    source = data if isinstance(data, ImageSource) else open_data(data, holdout=0)
    default = source.held_out_name if isinstance(data, ImageSource) else default_split(source)
    name = (split_named(split) or split) if split else default
    if name != "all" and name not in source.splits:
        known = ", ".join(dict.fromkeys([*source.splits, "all"]))
        is_array = name == "validation" and isinstance(source.splits.get("train"), ArrayImages)
        hint = ": training kept out none, try 'vgg train --validation N'" if is_array else ""
        raise DataError(f"{source.name}: expected a split of {known}, got {split!r}{hint}")
    return source, name


def _outputs(
    classifier: Classifier,
    images: Images,
    views: Views | None,
    options: dict[str, Any],
    bad: dict[str, str],
    names: dict[int, str],
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of `images` with its logits; the names of images are added to `names`, bad images to `bad`."""
    if views:
        yield from viewed(classifier, images, views, names)
        return
    feed = open_feed(images, _Named(classifier.preprocessing, names), Whole(classifier.device), **options)
    yield from judged(classifier.fast, feed, classifier.preprocessing)
    bad |= feed.loader.bad if isinstance(feed, LoaderFeed) else {}


def _averaged(streams: list[Iterator[tuple[Batch, Tensor]]]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of the first network, with the logarithm of the mean of all networks' softmax outputs."""
    for parts in zip(*streams, strict=True):
        batch, logits = parts[0]
        probabilities = [other.softmax(dim=1).to(logits.device) for _, other in parts]
        yield batch, torch.stack(probabilities).mean(dim=0).log()


def _notes(
    classifiers: list[Classifier], views: Views | None, unknown: Iterable[str], bad: dict[str, str]
) -> tuple[str, ...]:
    """Notes on averaged views, on images of `unknown` classes, and on `bad` images."""
    counts = Counter(unknown)
    return (
        *([str(views)] if views else [MIRRORED] * any(c.preprocessing.test_flip for c in classifiers)),
        *_list_note("not counted, as the network has no such class", [f"{n:,} of {k}" for k, n in counts.items()]),
        *_list_note("not counted, as they are bad", [f"{image}: {reason}" for image, reason in bad.items()]),
    )


def _list_note(what: str, items: list[str]) -> list[str]:
    more = f"; and {len(items) - MAX_NOTES:,} more" * (len(items) > MAX_NOTES)
    return [f"{what}: {'; '.join(shown(item, limit=300) for item in items[:MAX_NOTES])}{more}"] * bool(items)


def default_split(source: ImageSource) -> str:
    """The split to measure on by default if nothing is held out: `test`, else `validation`, else all."""
    return next(name for name in ("test", "validation", "all", "train") if name in source.splits)


@torch.no_grad()
def judged(net: nn.Module, feed: Feed, preprocessing: Preprocessing) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of `feed` in order, each with the logits of `net`: float32 (images, classes).

    The network is left in evaluation mode.
    """
    net.eval()
    for batch in feed.batches(epoch=0):
        x = network_input(feed, batch.images, preprocessing)
        with gpu.half(x):
            logits = class_logits(net, x, preprocessing)
        yield batch, logits.float()


def data_of_run(model: Path, data_dir: Path | None = None) -> ImageSource:
    """The data of the run with the folder or weight file `model`, split as in its training."""
    path = (model if model.is_dir() else model.parent) / "recipe.json"
    if not path.is_file():
        raise DataError(
            f"{shown(model, 500)}: expected data to measure on, as this is no run, try evaluate(model, 'photos')"
        )
    try:
        recipe = json.loads(path.read_text())  # vggkit.training.recipe is above this room
        names = ("holdout", "seed", "stream", "epoch_images")
        source = open_data(recipe["data"], data_dir=data_dir, **{n: recipe[n] for n in names if n in recipe})
        count = recipe.get("validation", 0)
        if count and isinstance(source.train, ArrayImages):
            splits = {"train": source.train[:-count], "validation": source.train[-count:]}
            return replace(source, splits={**source.splits, **splits})
        return source
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        raise DataError(f"{shown(path, 500)}: expected the recipe of a run, got something else") from None


class _SplitResult(NamedTuple):
    columns: Tensor
    """int64 (4, images): the label in the data, the label in the network, the prediction, and whether it is in the
    top 5."""
    confidence: Tensor
    mistakes: list[Tensor]
    """The mistakes of the highest confidence, as columns: probability, position, label, prediction and pixels."""
    log_probabilities: list[Tensor]
    """On the CPU, (images, classes) of each batch, if they are kept."""


def _measure_split(batches: Iterable[tuple[Batch, Tensor]], label_table: Tensor, keep_outputs: bool) -> _SplitResult:
    """Measure a split; the device is not synchronised before the end, unless outputs are kept."""
    columns, confidence, mistakes, outputs = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    start, is_finite = 0, torch.tensor(True, device=label_table.device)
    for batch, logits in batches:
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        is_finite &= probability.isfinite().all()
        confidence.append(probability)
        if keep_outputs:
            outputs.append(logits.log_softmax(dim=1).cpu())
        labels = label_table[batch.labels.clamp(min=-1)]
        in_top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1)
        columns.append(torch.stack([batch.labels, labels, predicted, in_top5]))
        wrong = torch.where((labels != predicted) & (labels != IGNORED_LABEL), probability, 0)
        rows = wrong.topk(min(NUM_MISTAKES, len(wrong))).indices
        new = [wrong[rows], rows + start, labels[rows], predicted[rows], batch.images[rows]]
        merged = [torch.cat(pair) for pair in zip(mistakes, new, strict=True)] if mistakes else new
        best = merged[0].topk(min(NUM_MISTAKES, len(merged[0]))).indices
        mistakes, start = [values[best] for values in merged], start + len(labels)
    if not is_finite:
        raise WeightsError("expected weights that give finite outputs, got others, try other weights")
    return _SplitResult(torch.cat(columns, dim=1), torch.cat(confidence), mistakes, outputs)


def _mistakes(classifier: Classifier, names: dict[int, str], columns: list[Tensor]) -> Iterator[Mistake]:
    """The mistakes of a split, with names, from the columns of a `_SplitResult`."""
    *numbers, pixels = (column.cpu() for column in columns)
    for *row, image in zip(*(column.tolist() for column in numbers), pixels.permute(0, 2, 3, 1).numpy(), strict=True):
        probability, position, label, predicted = row
        if probability > 0:
            classes = (classifier.classes[label], classifier.classes[predicted])
            yield Mistake(names[position], *classes, probability, image)


@dataclass(frozen=True)
class _Named(FittedImage):
    """Reads images and records their names, as a stream can be read only once."""

    names: dict[int, str]

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        self.names[position] = sample.name
        return super().__call__(sample, epoch, position)
