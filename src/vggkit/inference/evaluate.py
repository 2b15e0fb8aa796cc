"""A trained network and labelled images to an `Evaluation`."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    """How a network does on labelled images, on its device.

    Classes are matched by name, by synset or by number, see `matched_classes`; images of other classes do not count.

    Args:
        model: a classifier, or what `load_classifier` takes; or a list of several with the same classes, whose
            probabilities are averaged.
        data: from `open_data`; or what that takes, of which nothing is kept out: a folder with a folder for each class
            is measured whole, and of several splits it is `test`, else `validation`. By default, the data of the
            (first) run.
        split: `train`, `validation`, `test`, or `all` splits together; by default what `data` holds out.
        batch_size: images together.
        num_workers: threads that decode image files ahead.
        bad_images: what to do with files that are damaged or no images: fail, or skip them, which a note then says.
        views: views of each image whose probabilities are averaged, see `Views`, or their kind; a bad image is then
            always an error.
        keep_outputs: give `Evaluation.outputs` too, which take 4 bytes for each class of each image.

    Raises:
        DataError: the data has no class that the network knows, or no such split, or holds a bad image.
        LoadingError: images cannot be loaded for another reason than a bad file.
        WeightsError: the weights give values that are not finite; or several models have different classes.
    """
    models: list[Any] = list(model) if isinstance(model, list | tuple) else [model]
    classifiers = _loaded(models)
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
    source, name = _chosen(data, split)
    matches = matched_classes(classifier.classes, source.classes)
    # The last entry is for what is ignored already, whose label is negative.
    table = torch.tensor([IGNORED_LABEL if match is None else match for match in [*matches, None]])
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "bad_images": bad_images}
    measured, mistakes, names, bad = list[_Outcome](), list[Mistake](), list[str](), dict[str, str]()
    for images in source.splits.values() if name == "all" else [source.splits[name]]:
        called = {position: f"image {position}" for position in range(len(images))}  # as arrays are
        said = [_said(one, images, views, options, bad, called) for one in classifiers]
        outcome = _outcome(_averaged(said) if len(said) > 1 else said[0], table.to(classifier.device), keep_outputs)
        measured.append(outcome)
        mistakes += _mistakes(classifier, called, outcome.surest)
        names += called.values()
    given, labels, predicted, is_in_top5 = torch.cat([one.columns for one in measured], dim=1).cpu().numpy()
    is_counted = labels != IGNORED_LABEL
    if not is_counted.any():
        raise DataError(f"{source.name}: expected an image to measure by that can be read, got none")
    unknown = Counter(source.classes[label] for label in given[(given != IGNORED_LABEL) & ~is_counted].tolist())
    notes = (
        *([str(views)] if views else [MIRRORED] * any(one.preprocessing.test_flip for one in classifiers)),
        *_listed("not counted, as the network has no such class", [f"{n:,} of {k}" for k, n in unknown.items()]),
        *_listed("not counted, as they are bad", [f"{image}: {reason}" for image, reason in bad.items()]),
    )
    outputs = None
    if keep_outputs:
        kept = torch.cat([log_p for one in measured for log_p in one.log_probabilities]).numpy()
        outputs = Outputs(tuple(n for n, counts in zip(names, is_counted, strict=True) if counts), kept[is_counted])
    return Evaluation(
        classifier.classes,
        labels[is_counted],
        predicted[is_counted],
        measured_on=f"{name.removeprefix('all')} images of {source.name}".lstrip(),
        notes=notes,
        mistakes=tuple(sorted(mistakes, key=lambda mistake: -mistake.probability)[:NUM_MISTAKES]),
        top5=float(is_in_top5[is_counted].mean()),
        confidence=torch.cat([one.confidence for one in measured]).cpu().numpy()[is_counted],
        outputs=outputs,
    )


def _loaded(models: list[AnyModel]) -> list[Classifier]:
    """One classifier or several, with the same classes."""
    if not models:
        raise UserError("expected a model to evaluate, got an empty list")
    classifiers = [load_classifier(model) for model in models]
    first = classifiers[0].classes
    for one in classifiers:
        one.check_has_classes()
        if one.classes != first:
            raise WeightsError(
                f"expected models of the same classes in the same order, got {few(first)} and "
                f"{few(one.classes)} in {shown(one.source, 500)}"
            )
    return classifiers


def _chosen(data: ImageSource | str | os.PathLike[str], split: str | None) -> tuple[ImageSource, str]:
    """The data and the name of a split of it, or `all`."""
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


def _said(
    classifier: Classifier,
    images: Images,
    views: Views | None,
    options: dict[str, Any],
    bad: dict[str, str],
    names: dict[int, str],
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch of `images` and what the network makes of it; `names` and, at the end, `bad` are filled in."""
    if views:
        yield from viewed(classifier, images, views, names)
        return
    feed = open_feed(images, _Named(classifier.preprocessing, names), Whole(classifier.device), **options)
    yield from judged(classifier.fast, feed, classifier.preprocessing)
    bad |= feed.loader.bad if isinstance(feed, LoaderFeed) else {}


def _averaged(said: list[Iterator[tuple[Batch, Tensor]]]) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch as the first network saw it, and the logarithm of the mean of all networks' softmax outputs."""
    for parts in zip(*said, strict=True):
        batch, logits = parts[0]
        probabilities = [other.softmax(dim=1).to(logits.device) for _, other in parts]
        yield batch, torch.stack(probabilities).mean(dim=0).log()


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


def data_of_run(model: Path, data_dir: Path | None = None) -> ImageSource:
    """The data of the run at, or around the weight file, `model`, divided as for its training."""
    path = (model if model.is_dir() else model.parent) / "recipe.json"
    if not path.is_file():
        raise DataError(
            f"{shown(model, 500)}: expected data to measure on, as this is no run, try evaluate(model, 'photos')"
        )
    try:
        recipe = json.loads(path.read_text())  # as the recipe, which stands above this room, writes it
        named = ("holdout", "seed", "stream", "epoch_images")
        source = open_data(recipe["data"], data_dir=data_dir, **{n: recipe[n] for n in named if n in recipe})
        kept_out = recipe.get("validation", 0)
        if kept_out and isinstance(source.train, ArrayImages):
            parts = {"train": source.train[:-kept_out], "validation": source.train[-kept_out:]}
            return replace(source, splits={**source.splits, **parts})
        return source
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        raise DataError(f"{shown(path, 500)}: expected the recipe of a run, got something else") from None


class _Outcome(NamedTuple):
    """What networks make of a split."""

    columns: Tensor
    """int64 (4, images): the labels of the data and of the network, what it said, and whether the label is among its
    first five."""
    confidence: Tensor
    surest: list[Tensor]
    """The mistakes that it was surest of, as columns: probability, position, label, prediction and pixels."""
    log_probabilities: list[Tensor]
    """On the CPU, (images, classes) of each batch, if they are kept."""


def _outcome(batches: Iterable[tuple[Batch, Tensor]], table: Tensor, keep_outputs: bool) -> _Outcome:
    """Nothing is asked of the device before the end, unless outputs are kept."""
    columns, confidence, surest, kept = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    start, is_finite = 0, torch.tensor(True, device=table.device)
    for batch, logits in batches:
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        is_finite &= probability.isfinite().all()
        confidence.append(probability)
        if keep_outputs:
            kept.append(logits.log_softmax(dim=1).cpu())
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
    return _Outcome(torch.cat(columns, dim=1), torch.cat(confidence), surest, kept)


def _mistakes(classifier: Classifier, names: dict[int, str], surest: list[Tensor]) -> Iterator[Mistake]:
    """The mistakes of a split, by name, from the columns of `_Outcome`."""
    *numbers, pixels = (column.cpu() for column in surest)
    probabilities, positions, labels, predicted = (some.tolist() for some in numbers)
    for row in [row for row, probability in enumerate(probabilities) if probability > 0]:
        pair = (classifier.classes[labels[row]], classifier.classes[predicted[row]])
        yield Mistake(names[positions[row]], *pair, probabilities[row], pixels[row].permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class _Named(FittedImage):
    """Reads images, and remembers what each is called: a stream cannot be asked again."""

    names: dict[int, str]

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        self.names[position] = sample.name
        return super().__call__(sample, epoch, position)
