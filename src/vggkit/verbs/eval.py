"""`vgg eval`: a trained network on labelled images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggkit.errors import UserError, shown
from vggkit.training.recipe import Recipe
from vggkit.training.run_folder import RECIPE, read_recipe
from vggkit.verbs.models import ModelFlags
from vggkit.verbs.terminal import check_out, parse_flags, print_json

if TYPE_CHECKING:
    from vggkit.data.samples import ImageSource


@dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Measure a trained network: accuracy, by class, confusions.

    Examples:
      vgg eval runs/quick-1 --plot confusion.png
      vgg eval runs/photos/model.safetensors --data photos --json
    """

    best: bool = False
    """Take the weights of the run's best epoch (best.safetensors) instead of the last one's."""
    data: str | None = None
    """Data to measure on, named as for vgg train, all of it; if not given, what was kept out of the run's own data."""
    split: Literal["train", "val", "validation", "test", "all"] | None = None
    """The part of the data to measure on; if not given and there are several, test, else validation."""
    bad_images: Literal["fail", "skip"] | None = None
    """What to do with files that are damaged or no images; as the recipe says, if not given."""
    workers: int | None = None
    """Threads that decode image files ahead; half of the cores, at most 16, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    views: Literal["one", "flip", "multi-crop", "dense", "dense+crop"] = "one"
    """Views of each image whose probabilities are averaged: its mirror image, 5 x 5 crops, or the whole image."""
    scales: tuple[int, ...] = ()
    """Pixels of the shorter side that images are resized to for --views; the network's own, if not given."""
    plot: Path | None = None
    """Draw the confusion matrix and the surest mistakes into this .png file."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("eval", Flags, arguments)
    if flags.plot is not None:
        check_out(flags.plot, ".png", flag="--plot")
    if flags.scales and flags.views == "one":
        raise UserError("expected --views with --scales, got one view, try --views flip")
    from vggkit.data.loader import default_workers
    from vggkit.inference.confusion import draw_confusion
    from vggkit.inference.evaluate import default_split, evaluate
    from vggkit.inference.views import Views

    classifier = flags.classifier(flags.best)
    model = Path(flags.model)
    folder = model if model.is_dir() else model.parent
    recipe = read_recipe(folder) if (folder / RECIPE).is_file() else None
    data, notes = _opened(flags, recipe)
    evaluation = evaluate(
        classifier,
        data,
        flags.split or (default_split(data) if flags.data else None),
        num_workers=flags.workers if flags.workers is not None else default_workers(),
        bad_images=flags.bad_images or (recipe.bad_images if recipe else "fail"),
        views=None if flags.views == "one" else Views(flags.views, flags.scales),
    )
    if flags.plot is not None:
        draw_confusion(evaluation, flags.plot)
    if not flags.best and Path(classifier.source).with_name("best.safetensors").exists():
        notes.append(f"{Path(classifier.source).parent} also has best.safetensors, of its best epoch: --best takes it")
    if flags.json:
        facts = {
            "weights": classifier.source,
            "notes": [*notes, *evaluation.notes],
            "measured_on": evaluation.measured_on,
            "images": len(evaluation.labels),
            "accuracy": evaluation.accuracy,
            "interval": evaluation.interval,
            "class_accuracy": dict(zip(evaluation.classes, evaluation.class_accuracy, strict=True)),
            "confusion": evaluation.confusion.tolist(),
        }
        print_json(facts)
        return
    print(f"weights: {classifier.source}", *notes, evaluation, sep="\n")
    if flags.plot is not None:
        print(shown(flags.plot, 500))


def _opened(flags: Flags, recipe: Recipe | None) -> "tuple[ImageSource, list[str]]":
    """The data that the flags or the recipe name, and lines on it."""
    from vggkit.data.sources import open_data

    known = recipe or Recipe.named("quick")
    options = {name: getattr(known, name) for name in ("holdout", "seed", "stream", "epoch_images")}
    if flags.data is None:
        return open_data(known.data, data_dir=flags.data_dir, **options), []
    data = open_data(flags.data, data_dir=flags.data_dir, holdout=0)
    if "all" in data.splits and flags.split not in (None, "all"):  # the run's own data, at another place perhaps
        return open_data(flags.data, data_dir=flags.data_dir, **options), []
    notes = [str(data)] * (len(data.splits) > 1)
    if recipe is not None and Path(recipe.data).resolve() == Path(flags.data).resolve() and "all" in data.splits:
        notes.append("the run was trained on most of these images: --split val measures on those kept out")
    return data, notes
