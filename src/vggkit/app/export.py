"""Finished runs as static HTML pages: curves, confusion matrix, mistakes, costs, drawing and recipe."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.app.addresses import file_address
from vggkit.errors import RunError, shown
from vggkit.training.run_folder import RECIPE, read_epochs, read_recipe
from vggkit.weights.runs import MODEL

if TYPE_CHECKING:
    from vggkit.lab.report import Part


def export(runs: Path, folder: Path) -> list[Path]:
    """Write a page for each finished run into `folder`, which is created: for `runs` itself or for the runs in it.

    Raises:
        RunError: there is no finished run.
    """
    from vggkit.lab.report import write_report

    found = (runs, *sorted(runs.glob("*")))
    finished = [path.absolute() for path in found if (path / RECIPE).is_file() and (path / MODEL).is_file()]
    if not finished:
        raise RunError(f"expected finished runs in --runs, got {shown(str(runs), 500)}, try vgg train")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"expected a folder that can be made for --export, got {folder}: {error.strerror}") from None
    pages = [folder / f"{run.name}.html" for run in finished]
    for run, page in zip(finished, pages, strict=True):
        write_report(page, run.name, _parts(run))
    return pages


def _parts(run: Path) -> "list[Part]":
    from vggkit.design.network import costs, draw
    from vggkit.inference.confusion import draw_confusion, draw_mistakes
    from vggkit.inference.evaluate import evaluate
    from vggkit.inference.predict import load_classifier
    from vggkit.lab.report import Code, Heading, Picture, as_svg
    from vggkit.training.curves import curves

    recipe, classifier = read_recipe(run), load_classifier(run)
    history = read_epochs(run, recipe.epochs)
    evaluation, network = evaluate(classifier), classifier.net.architecture
    parts: list[Part] = [f"{evaluation.summary} on the {len(evaluation.labels):,} {evaluation.measured_on}."]
    if history:
        figure = curves(history, recipe.epochs, evaluation.measured_on.split()[0], network.name)
        parts.append(Picture(as_svg(figure), "Loss and accuracy over the epochs."))
    with tempfile.TemporaryDirectory() as place:
        for draw_one, words in (
            (draw_confusion, "What is taken for what, in percent of the class."),
            (draw_mistakes, "The mistakes of the highest confidence."),
        ):
            draw_one(evaluation, picture := Path(place) / "picture.png")
            parts.append(Picture(_embedded(picture.read_bytes()), words))
    parts += [Heading("The network"), Picture(draw(network), network.name), costs(network).table()]
    return [*parts, Heading("The recipe"), Code(recipe.to_json())]


def _embedded(png: bytes) -> str:
    """A PNG file as an SVG element."""
    width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    image = f'<image href="{file_address(png)}" width="100%" height="100%"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{image}</svg>'
