"""`vgg eval`: a trained network on a test set."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, check_out, parse_flags, print_json, print_table, print_to_stderr

if TYPE_CHECKING:
    from vggkit.inference.evaluate import Evaluation

MAX_COLUMNS = 20
"""Classes that the table of confusions shows in full."""


@dataclass(frozen=True)
class Flags:
    """Measure a trained network on the images kept out of training: accuracy, by class, and confused with what."""

    run: Positional[Path]
    """A run folder, or a model.safetensors."""
    data: str | None = None
    """Data to test on, as for vgg train; if not given, what the recipe.json of the run says, else fashion-mnist."""
    bad_images: Literal["fail", "skip"] | None = None
    """What to do with files that are no images or broken; as the recipe says, if not given."""
    workers: int | None = None
    """Threads that decode image files ahead; half of the cores, at most 16, if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    plot: Path | None = None
    """Draw the confusion matrix into this .png file."""
    json: bool = False
    """Print JSON instead of tables."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code."""
    flags = parse_flags("eval", Flags, arguments)
    from vggkit.data.loader import default_workers
    from vggkit.data.sources import open_data
    from vggkit.inference.evaluate import draw_confusion, evaluate
    from vggkit.inference.predict import load_classifier
    from vggkit.training.hardware import choose_device, use_huge_pages

    if flags.plot is not None:
        check_out(flags.plot, ".png", flag="--plot")
    use_huge_pages()
    classifier = load_classifier(flags.run, choose_device(flags.device))
    recipe = _recipe_of_run(flags.run)
    data = open_data(
        flags.data or recipe.data,
        data_dir=flags.data_dir,
        holdout=recipe.holdout,
        seed=recipe.seed,
        stream=recipe.stream,
        epoch_images=recipe.epoch_images,
    )
    if data.is_drawn and not _recipe_path(flags.run).is_file():
        print_to_stderr(
            f"there is no recipe.json beside {flags.run}, whose seed would say which images were kept out of training: "
            "it may have learnt from those that it is measured on"
        )
    bad_images = flags.bad_images or recipe.bad_images
    workers = flags.workers if flags.workers is not None else default_workers()
    evaluation = evaluate(classifier, data, num_workers=workers, bad_images=bad_images)
    if flags.plot is not None:
        draw_confusion(evaluation, flags.plot)
    by_class = dict(zip(evaluation.classes, evaluation.class_accuracy, strict=True))
    if flags.json:
        confusion = evaluation.confusion.tolist()
        print_json({"accuracy": evaluation.accuracy, "class_accuracy": by_class, "confusion": confusion})
        return DONE
    count = int(evaluation.confusion.sum())
    print(f"accuracy {evaluation.accuracy:.4f} on the {count:,} {data.held_out_name} images of {data.name}")
    if len(by_class) <= MAX_COLUMNS:
        _print_confusion(evaluation)
    else:
        _print_most_confused(evaluation)
    if flags.plot is not None:
        print(flags.plot)
    return DONE


def _print_confusion(evaluation: "Evaluation") -> None:
    print("a row is a true class; below a number, its images that were taken for the class of that number")
    shares, counts = evaluation.class_accuracy, evaluation.confusion.tolist()
    rows = [
        (f"{index} {name}", _percent(share), *(str(n) if n else "." for n in row))
        for index, (name, share, row) in enumerate(zip(evaluation.classes, shares, counts, strict=True))
    ]
    print_table(("class", "accuracy", *map(str, range(len(rows)))), [rows], left_aligned=1)


def _print_most_confused(evaluation: "Evaluation") -> None:
    """For each class only what it is most often taken for: a column for each would be wider than a screen."""
    rows = []
    for index, (name, share) in enumerate(zip(evaluation.classes, evaluation.class_accuracy, strict=True)):
        counts = evaluation.confusion[index].copy()
        num_images, counts[index] = counts.sum(), 0
        other = int(counts.argmax())
        wrong = (evaluation.classes[other], f"{counts[other]:,}") if counts[other] else ("", "")
        rows.append((name, *wrong, f"{num_images:,}", _percent(share)))
    print_table(("class", "most taken for", "times", "images", "accuracy"), [rows], left_aligned=2)
    print("all numbers: --json, or --plot")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _recipe_path(run: Path) -> Path:
    return (run if run.is_dir() else run.parent) / "recipe.json"


def _recipe_of_run(run: Path) -> Recipe:
    """The recipe beside the weights; where there is none, one that names Fashion-MNIST."""
    path = _recipe_path(run)
    if not path.is_file():
        return Recipe.named("quick")
    try:
        return Recipe.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}, try the weight file alone, with --data") from None
