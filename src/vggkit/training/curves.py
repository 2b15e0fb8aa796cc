"""The curves of a run as a picture, with one panel for losses and one for accuracies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vggkit.errors import shown
from vggkit.training.run_state import EpochMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_MARKED_EPOCHS = 30  # up to this length of the axis, each epoch has a dot; more dots hide the line
MIN_ACCURACY_SPAN = 0.1  # minimum range of the accuracy axis
TRAIN, EVALUATED = "#4c78a8", "#e45756"


def curves(history: Sequence[EpochMetrics], num_epochs: int, evaluated_on: str, title: str) -> "Figure":
    """Loss and accuracy over the epochs, at least one, with the best epoch marked; 1320 x 570 pixels.

    `num_epochs` is the length of the whole run; `evaluated_on` is `test` or `validation`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 3.8), dpi=150, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    last_epoch = min(num_epochs, 2 * len(history))  # so that the first epochs of a long run are visible
    for axes, name in ((losses, "loss"), (accuracies, "accuracy")):
        _plot(axes, history, f"train_{name}", TRAIN, "train", last_epoch)
        _plot(axes, history, f"test_{name}", EVALUATED, evaluated_on, last_epoch)
        axes.set(xlabel="epoch", title=name)
    losses.set_ylim(0, max(losses.dataLim.ymax, 1e-3) * 1.1)  # also around the points of a single epoch
    _mark_best(accuracies, history, evaluated_on)
    for axes in (losses, accuracies):
        axes.legend()
    figure.suptitle(shown(title), parse_math=False)
    return figure


def _plot(axes: Any, history: Sequence[EpochMetrics], field: str, colour: str, label: str, last_epoch: int) -> None:
    """Plot one curve, if any epoch has a value."""
    from matplotlib.ticker import MaxNLocator

    points = [(metrics.epoch, getattr(metrics, field)) for metrics in history]
    points = [(epoch, value) for epoch, value in points if value is not None]
    if points:
        marker = "o" if last_epoch <= MAX_MARKED_EPOCHS else None
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3.5, label=label)
    axes.set_xlim(0.5, last_epoch + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def _mark_best(axes: Any, history: Sequence[EpochMetrics], evaluated_on: str) -> None:
    """Mark the first epoch of the best accuracy by a ring and a line, and put its value into the panel's title."""
    best = max(history, key=lambda metrics: metrics.test_accuracy)
    axes.plot(best.epoch, best.test_accuracy, "o", color=EVALUATED, fillstyle="none", markersize=10)
    axes.axvline(best.epoch, color=EVALUATED, linewidth=0.8, linestyle=":")
    axes.set_title(f"accuracy: best on {evaluated_on} {best.test_accuracy:.4f} (epoch {best.epoch})")
    low, high = axes.get_ylim()
    if high - low < MIN_ACCURACY_SPAN:  # smaller differences are noise
        middle = (low + high) / 2
        axes.set_ylim(middle - MIN_ACCURACY_SPAN / 2, middle + MIN_ACCURACY_SPAN / 2)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))
