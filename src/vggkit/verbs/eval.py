"""`vgg eval`: a trained network on labelled images."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggkit.errors import UserError, shown
from vggkit.training.recipe import Recipe
from vggkit.training.run_folder import RECIPE, read_recipe
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import check_out, check_workers, parse_flags, print_json

if TYPE_CHECKING:
    from vggkit.data.samples import ImageSource
    from vggkit.inference.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Measure a trained network on labelled images.

    Examples:
      vgg eval runs/quick-1
      vgg eval runs/quick-1 --plot confusion.png --mistakes mistakes.png
      vgg eval runs/photos/model.safetensors --data photos --predictions photos.csv
      vgg eval torchvision/vgg16 --data imagenet/val --views dense --scales 256 384
      vgg eval runs/quick-1 --split val --fit-temperature calibrated.safetensors
    """

    best: bool = False
    """Use the weights of the run's best epoch (best.safetensors) instead of the last one's."""
    data: str | None = None
    """Images to measure on, as for vgg train --data; if not given, those that the run held out of its training."""
    split: Literal["train", "val", "validation", "test", "all"] | None = None
    """The part of the data to measure on; if not given, the test split of --data, else validation, else all."""
    bad_images: Literal["fail", "skip"] | None = None
    """What to do with files that are damaged or no images; if not given, as in the recipe."""
    workers: int | None = None
    """Threads that decode image files ahead; half of the cores, at most 16, if not given."""
    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    views: Literal["one", "flip", "multi-crop", "dense", "dense+crop"] = "one"
    """What the network sees of an image. one: the same as in vgg predict. The others average the probabilities of views
    and of their mirror images. flip: the same view; multi-crop: 5 x 5 crops; dense: the whole image, which a VGG
    network slides over; dense+crop: the mean of the last two."""
    scales: tuple[int, ...] = ()
    """With --views: pixels to resize the shorter side of an image to; of several sizes the probabilities are averaged.
    If not given, images are resized as for vgg predict."""
    ensemble: tuple[str, ...] = ()
    """Other models with the same classes; the probabilities of all models are averaged."""
    plot: Path | None = None
    """Draw the confusion matrix into this .png file."""
    mistakes: Path | None = None
    """Draw the 24 mistakes with the highest confidence, with the names of the images, into this .png file."""
    reliability: Path | None = None
    """Draw the reliability diagram, accuracy against confidence, into this .png file."""
    predictions: Path | None = None
    """Write the name, the label and the 5 most probable classes of each image into this .csv file."""
    fit_temperature: Path | None = None
    """Fit a temperature to the images measured on, which should not be those of the final test, and write the
    calibrated network into this .safetensors file."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("eval", Flags, arguments)
    model = Path(flags.model)
    folder = model if model.is_dir() else model.parent
    recipe = read_recipe(folder) if (folder / RECIPE).is_file() else None
    _check(flags, recipe)
    from vggkit.data.loader import default_workers
    from vggkit.inference.calibration import fit_temperature, save_calibrated
    from vggkit.inference.evaluate import default_split, evaluate
    from vggkit.inference.views import Views

    classifier = flags.classifier(flags.best)
    others = [replace(flags, model=model).classifier() for model in flags.ensemble]
    data, notes = _open_data(flags, recipe, folder)
    evaluation = evaluate(
        [classifier, *others],
        data,
        flags.split or (default_split(data) if flags.data else None),
        num_workers=flags.workers if flags.workers is not None else default_workers(),
        bad_images=flags.bad_images or (recipe.bad_images if recipe else "fail"),
        views=None if flags.views == "one" else Views(flags.views, flags.scales),
        keep_outputs=flags.predictions is not None or flags.fit_temperature is not None,
    )
    written, fit_error = _write(flags, evaluation), None
    if flags.fit_temperature is not None and (outputs := evaluation.outputs) is not None:
        try:
            temperature = fit_temperature(outputs.log_probabilities, evaluation.labels, classifier.temperature)
            save_calibrated(flags.fit_temperature, classifier, temperature)
            written.append(f"{shown(flags.fit_temperature, 500)}: {temperature}")
        except UserError as error:  # raised once the evaluation is printed
            fit_error = error
    if not flags.best and Path(classifier.source).with_name("best.safetensors").exists():
        notes.append(f"{Path(classifier.source).parent} also has best.safetensors, of its best epoch: --best takes it")
    if flags.json:
        models = {"weights": classifier.source, "ensemble": [other.source for other in others]}
        print_json({**models, "notes": [*notes, *evaluation.notes], **_figures(evaluation), "written": written})
    else:
        sources = ", ".join(model.source for model in (classifier, *others))
        print(f"weights: {sources}", *notes, evaluation, *written, sep="\n")
    if fit_error is not None:
        raise fit_error


def _figures(evaluation: "Evaluation") -> dict[str, object]:
    numbers = ("measured_on", "accuracy", "interval", "top5", "calibration_error")
    return {
        **{name: getattr(evaluation, name) for name in numbers},
        "images": len(evaluation.labels),
        "class_accuracy": dict(zip(evaluation.classes, evaluation.class_accuracy, strict=True)),
        "class_intervals": dict(zip(evaluation.classes, evaluation.class_intervals, strict=True)),
        "confusion": evaluation.confusion.tolist(),
    }


def _check(flags: Flags, recipe: Recipe | None) -> None:
    """Raise `UserError`, before any image is read, for values and combinations of flags that are not allowed."""
    flag_by_path = dict[str, str]()
    reads = (flags.model, *flags.ensemble, flags.data or (recipe and recipe.data))
    suffixes = {"predictions": ".csv", "fit-temperature": ".safetensors"}
    for name in ("plot", "mistakes", "reliability", *suffixes):
        if (path := getattr(flags, name.replace("-", "_"))) is not None:
            check_out(path, suffixes.get(name, ".png"), flag=f"--{name}", reads=reads)
            if (other := flag_by_path.setdefault(os.path.realpath(path), name)) != name:
                raise UserError(f"expected a file of its own for --{name}, got that of --{other}: {path}")
    check_workers(flags.workers)
    if flags.scales and flags.views == "one":
        raise UserError("expected --views with --scales, got one view, try --views flip")
    if flags.fit_temperature is not None and flags.ensemble:
        raise UserError("expected one model for --fit-temperature, got an ensemble, try each model by itself")


def _write(flags: Flags, evaluation: "Evaluation") -> list[str]:
    """Write the requested pictures and the table; returns a line for each."""
    from vggkit.inference import confusion

    written = []
    for path, write in (
        (flags.plot, confusion.draw_confusion),
        (flags.mistakes, confusion.draw_mistakes),
        (flags.reliability, confusion.draw_reliability),
        (flags.predictions, confusion.write_predictions),
    ):
        if path is not None:
            write(evaluation, path)
            written.append(shown(path, 500))
    return written


def _open_data(flags: Flags, recipe: Recipe | None, folder: Path) -> "tuple[ImageSource, list[str]]":
    """Open the data named by the flags or by the recipe of the run in `folder`; returns it with notes to print."""
    from vggkit.data.sources import open_data
    from vggkit.inference.evaluate import data_of_run

    defaults = recipe or Recipe.named("quick")
    options = {name: getattr(defaults, name) for name in ("holdout", "seed", "stream", "epoch_images")}
    if flags.data is None:
        if recipe and recipe.validation and flags.split not in (None, "test", "all"):
            return data_of_run(folder, flags.data_dir), []
        return open_data(defaults.data, data_dir=flags.data_dir, **options), []
    data = open_data(flags.data, data_dir=flags.data_dir, holdout=0)
    if "all" in data.splits and flags.split not in (None, "all"):  # perhaps the run's own data, moved to another folder
        return open_data(flags.data, data_dir=flags.data_dir, **options), []
    notes = [str(data)] * (len(data.splits) > 1)
    if recipe is not None and Path(recipe.data).resolve() == Path(flags.data).resolve() and "all" in data.splits:
        notes.append("the run was trained on most of these images: --split val measures on those kept out")
    return data, notes
