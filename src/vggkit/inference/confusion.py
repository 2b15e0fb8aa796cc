"""Files of an evaluation: plots of confusions, mistakes and calibration, and a table of its outputs."""

import csv
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggkit.data.files import as_png, write_whole
from vggkit.errors import DataError, shown
from vggkit.inference.calibration import reliability
from vggkit.inference.evaluation import Evaluation, interval_of
from vggkit.inference.similar import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DRAWN_CLASSES = 40
NAME_CHARACTERS = 24


def draw_confusion(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix, each row in percent of its class, into a PNG file at `path`.

    Errors (red) have their own scale, up to the largest, so that they can be seen beside the diagonal (blue). For more
    than `MAX_DRAWN_CLASSES` classes only colours are drawn, without percentages and names.
    """
    from matplotlib.figure import Figure

    side = 2.5 + 0.55 * min(len(evaluation.classes), MAX_DRAWN_CLASSES)
    figure = Figure(figsize=(side + 1.1, max(side, 4.0)), dpi=120, layout="constrained")
    measured_on = f"{len(evaluation.labels):,} {shown(evaluation.measured_on)}"
    figure.suptitle(f"{evaluation.summary}\non {measured_on}", fontsize=10, parse_math=False)
    counts = evaluation.confusion
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_right = np.eye(len(counts), dtype=bool)
    largest_error = max(percent[~is_right].max(initial=0), 1e-9)
    axes: Axes = figure.add_subplot()
    right = axes.imshow(np.ma.masked_array(percent, ~is_right), cmap="Blues", vmin=0, vmax=100)
    wrong = axes.imshow(np.ma.masked_array(percent, is_right), cmap="Reds", vmin=0, vmax=largest_error)
    if len(counts) <= MAX_DRAWN_CLASSES:
        for row, column in np.argwhere(counts).tolist():
            value, scale = percent[row, column], 100 if row == column else largest_error
            color = "white" if value > scale / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=7)
        names = [shown(name, NAME_CHARACTERS) for name in evaluation.classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(right, label="right, % of the class", shrink=0.7, pad=0.03)
    figure.colorbar(wrong, label="taken for another, % of the class", shrink=0.7, pad=0.03)
    with _missing_glyphs_ignored():
        picture = as_png(figure)
    write_whole(Path(path), picture)


def draw_mistakes(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draw the mistakes of the highest confidence, up to 24, with their names, into a PNG file at `path`."""
    titled = []
    for mistake in evaluation.mistakes:
        prediction = f"{shown(mistake.predicted, 22)} {mistake.probability:.1%}"
        titled.append((mistake.pixels, f"{prediction}\nis {shown(mistake.label, 22)}\n{shown(mistake.name[-26:])}"))
    with _missing_glyphs_ignored():
        picture = sheet(titled)
    write_whole(Path(path), picture)


def draw_reliability(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draw the accuracy in each range of confidence, with 95% intervals, into a PNG file at `path`."""
    from matplotlib.figure import Figure

    if evaluation.confidence is None:
        raise DataError("expected an evaluation with confidences, got none, try evaluate")
    bins = reliability(evaluation.confidence, evaluation.labels == evaluation.predicted)
    confidence = [b.confidence for b in bins]
    accuracy = np.array([b.right / b.images for b in bins])
    bounds = np.array([interval_of(b.right, b.images) for b in bins])
    figure = Figure(figsize=(5, 5.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="calibrated")
    spread = np.abs(bounds.T - accuracy)
    top.errorbar(confidence, accuracy, spread, fmt="o", markersize=4, capsize=2, label="accuracy, 95% interval")
    top.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="share that is right")
    top.set_title(f"{evaluation.summary}\nECE {evaluation.calibration_error:.1%}", fontsize=9)
    top.legend(fontsize=8)
    bottom.bar(confidence, [b.images for b in bins], width=0.03)
    bottom.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    write_whole(Path(path), as_png(figure))


def write_predictions(evaluation: Evaluation, path: str | os.PathLike[str], top: int = 5) -> None:
    """Write a CSV file at `path` with the name, the label and the `top` classes with probabilities of each image.

    Raises:
        DataError: the evaluation was made without `keep_outputs`.
    """
    if evaluation.outputs is None:
        raise DataError("expected an evaluation with outputs, got none, try evaluate(..., keep_outputs=True)")
    names, log_probabilities = evaluation.outputs
    count = min(top, len(evaluation.classes))
    text = io.StringIO(newline="")
    table = csv.writer(text)
    columns = [f"{name}_{n}" for n in range(1, count + 1) for name in ("class", "probability")]
    table.writerow(["image", "label", *columns])
    for name, label, row in zip(names, evaluation.labels.tolist(), log_probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:count].tolist()
        pairs = [value for index in best for value in (evaluation.classes[index], f"{np.exp(row[index]):.6g}")]
        table.writerow([name, evaluation.classes[label], *pairs])
    write_whole(Path(path), text.getvalue().encode(errors="backslashreplace"))


@contextmanager
def _missing_glyphs_ignored() -> Iterator[None]:
    """Within, matplotlib draws a box for a character that the font lacks, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
