"""`vgg eval`: a trained network on a test set."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from vggkit.training.recipe import Recipe
from vggkit.verbs.terminal import DONE, check_out, parse_flags, print_json, print_table


@dataclass(frozen=True)
class Flags:
    """Measure a trained network on the test set of its data: accuracy, by class, and confused with what."""

    run: Positional[Path]
    """A run folder, or a model.safetensors."""
    data: str | None = None
    """Data to test on; if not given, what the recipe.json beside the weights says, else fashion-mnist."""
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
    from vggkit.data.fashion_mnist import load
    from vggkit.inference.evaluate import draw_confusion, evaluate
    from vggkit.inference.predict import load_classifier
    from vggkit.training.hardware import choose_device

    if flags.plot is not None:
        check_out(flags.plot, ".png", flag="--plot")
    classifier = load_classifier(flags.run, choose_device(flags.device))
    data = flags.data if flags.data is not None else _data_of_run(flags.run)
    dataset = load(data, flags.data_dir)
    evaluation = evaluate(classifier, dataset)
    if flags.plot is not None:
        draw_confusion(evaluation, flags.plot)
    by_class = dict(zip(evaluation.classes, evaluation.class_accuracy, strict=True))
    if flags.json:
        confusion = evaluation.confusion.tolist()
        print_json({"accuracy": evaluation.accuracy, "class_accuracy": by_class, "confusion": confusion})
        return DONE
    print(f"accuracy {evaluation.accuracy:.4f} on the {len(dataset.test_labels):,} test images of {data}")
    print("a row is a true class; below a number, its images that were taken for the class of that number")
    header = ("class", "accuracy", *map(str, range(len(evaluation.classes))))
    rows = [
        (f"{index} {name}", _percent(by_class[name]), *(str(n) if n else "." for n in row))
        for index, (name, row) in enumerate(zip(evaluation.classes, evaluation.confusion.tolist(), strict=True))
    ]
    print_table(header, [rows], left_aligned=1)
    if flags.plot is not None:
        print(flags.plot)
    return DONE


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _data_of_run(run: Path) -> str:
    path = (run if run.is_dir() else run.parent) / "recipe.json"
    if not path.is_file():
        return "fashion-mnist"
    try:
        return Recipe.from_json(path.read_text()).data
    except ValueError as error:
        raise ValueError(f"{path}: {error}, try --data") from None
