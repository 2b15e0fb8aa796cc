"""The picture of an evaluation: which classes are taken for which, and the mistakes that the network was surest of."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggkit.data.files import as_png, write_whole
from vggkit.errors import shown
from vggkit.inference.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MAX_DRAWN_CLASSES = 40
NAME_CHARACTERS = 24


def draw_confusion(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix, each row in percent of its class, and the worst mistakes into a PNG file at `path`.

    Errors have a scale of their own, red up to the largest of them, so that the diagonal (blue) does not drown them.
    Of more than `MAX_DRAWN_CLASSES` classes only colours are drawn, with numbers for names.
    """
    from matplotlib.figure import Figure

    side = 2.5 + 0.55 * min(len(evaluation.classes), MAX_DRAWN_CLASSES)
    columns = 3 * bool(evaluation.mistakes)
    figure = Figure(figsize=(side + 1.1 + 1.25 * columns, max(side, 4.0)), dpi=120, layout="constrained")
    measured_on = f"{len(evaluation.labels):,} {shown(evaluation.measured_on)}"
    figure.suptitle(f"{evaluation.summary} on {measured_on}", parse_math=False)
    widths = [side + 1.1, 1.25 * columns] if columns else [side + 1.1]
    matrix, *mistakes = figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False).flat
    _draw_matrix(evaluation, matrix)
    for part in mistakes:
        _draw_mistakes(evaluation, part, columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        picture = as_png(figure)
    write_whole(Path(path), picture)


def _draw_matrix(evaluation: Evaluation, part: "SubFigure") -> None:
    counts = evaluation.confusion
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_right = np.eye(len(counts), dtype=bool)
    most = max(percent[~is_right].max(initial=0), 1e-9)
    axes: Axes = part.add_subplot()
    right = axes.imshow(np.ma.masked_array(percent, ~is_right), cmap="Blues", vmin=0, vmax=100)
    wrong = axes.imshow(np.ma.masked_array(percent, is_right), cmap="Reds", vmin=0, vmax=most)
    if len(counts) <= MAX_DRAWN_CLASSES:
        for row, column in np.argwhere(counts).tolist():
            value, scale = percent[row, column], 100 if row == column else most
            color = "white" if value > scale / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, fontsize=7)
        names = [shown(name, NAME_CHARACTERS) for name in evaluation.classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    part.colorbar(right, label="right, % of the class", shrink=0.7, pad=0.01)
    part.colorbar(wrong, label="taken for another, % of the class", shrink=0.7, pad=0.01)


def _draw_mistakes(evaluation: Evaluation, part: "SubFigure", columns: int) -> None:
    part.suptitle("the surest mistakes", fontsize=9)
    rows = -(-len(evaluation.mistakes) // columns)
    for axes in (grid := part.subplots(max(rows, 3), columns, squeeze=False)).flat:
        axes.axis("off")
    for axes, mistake in zip(grid.flat, evaluation.mistakes, strict=False):
        axes.imshow(mistake.pixels, cmap="gray", vmin=0, vmax=255)
        names = f"{shown(mistake.predicted, 16)} {mistake.probability:.0%}\nis {shown(mistake.label, 16)}"
        axes.set_title(names, fontsize=6.5, parse_math=False)
