"""Live progress on a terminal, plain lines elsewhere, curves in a picture and in a notebook."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from vggkit.data.files import as_png, write_whole

REFRESH_SECONDS = 0.5
PLAIN_LINE_SECONDS = 30.0
CURVES_SECONDS = 10.0


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    step: int
    """Optimizer steps since the start of the run."""
    train_loss: float
    """Mean over the epoch's images, as they came: augmented, with dropout, while the weights moved."""
    train_accuracy: float
    """Top-1, over the same."""
    test_accuracy: float
    """Top-1 on the test set, or on the images kept out with `validation`, after the epoch."""
    learning_rate: float
    """Of the epoch's last step."""
    examples_per_second: float
    """Training images over the wall time of the epoch's training part, data included."""
    train_seconds: float
    """That wall time."""
    elapsed_seconds: float
    """Wall time since the start of the run, evaluation included."""


class Progress:
    """What a run shows while it goes on, and its `metrics.jsonl` and `curves.png`.

    Sums of an unfinished epoch are read from the device without waiting for it: a copy is asked for, and shown
    once it has arrived.
    """

    def __init__(self, folder: Path, num_epochs: int, steps_per_epoch: int, evaluated_on: str, show: bool) -> None:
        self.folder, self.num_epochs, self.steps_per_epoch = folder, num_epochs, steps_per_epoch
        self.evaluated_on, self.show = evaluated_on, show
        self.history: list[EpochMetrics] = []
        self._start = self._last_refresh = self._last_line = time.perf_counter()
        self._last_curves, self._drawn_epochs = -CURVES_SECONDS, 0
        self._metrics: TextIO = (folder / "metrics.jsonl").open("w", buffering=1)
        self._copy: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._live = _live_display(num_epochs * steps_per_epoch) if show and _is_terminal() else None
        self._notebook_display: Any = None

    def log(self, event: str, **values: object) -> None:
        """Add a line to `metrics.jsonl`."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._metrics.write(json.dumps({"event": event, **finite}, allow_nan=False) + "\n")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        elif self.show:
            try:
                print(line, flush=True)
            except (OSError, ValueError):  # `vgg train | head`: who has stopped reading does not stop the training
                self.show = False

    def step(self, step: int, sums: Tensor) -> None:
        """After each step: `sums` (loss x images, correct, images) of the epoch so far, on the device."""
        now = time.perf_counter()
        if self._copy is None and now - self._last_refresh >= REFRESH_SECONDS:
            self._last_refresh = now
            event = None
            if sums.is_cuda:
                copied = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
                copied.copy_(sums, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            else:
                copied = sums.to("cpu", copy=True)
            self._copy = (step, copied, event)
        if self._copy is not None and (self._copy[2] is None or self._copy[2].query()):
            self._show_step(*self._copy[:2])
            self._copy = None

    def epoch(self, metrics: EpochMetrics) -> None:
        """After each epoch."""
        self.history.append(metrics)
        self._copy = None
        self.log("epoch", **asdict(metrics))
        self.say(
            f"epoch {metrics.epoch:>{len(str(self.num_epochs))}}/{self.num_epochs}  "
            f"loss {metrics.train_loss:.3f}, train acc {metrics.train_accuracy:.3f}, "
            f"{self.evaluated_on} acc {metrics.test_accuracy:.3f}  "
            f"{metrics.examples_per_second:,.0f} examples/s  {clock(metrics.elapsed_seconds)}"
        )
        self._last_line = time.perf_counter()
        if self._last_line - self._last_curves >= CURVES_SECONDS or _is_notebook():
            self._draw()

    def close(self) -> None:
        """At the end, whatever the end was."""
        if self._live is not None:
            self._live.stop()
        if len(self.history) > self._drawn_epochs:
            self._draw()
        self._metrics.close()

    def _show_step(self, step: int, sums: Tensor) -> None:
        loss_sum, correct, images = sums.tolist()
        now = time.perf_counter()
        elapsed = now - self._start
        total = self.num_epochs * self.steps_per_epoch
        loss, accuracy = loss_sum / images, correct / images
        self.log("step", step=step, train_loss=loss, train_accuracy=accuracy, elapsed_seconds=elapsed)
        epoch = (step - 1) // self.steps_per_epoch + 1
        status = f"epoch {epoch}/{self.num_epochs}  loss {loss:.3f}  train acc {accuracy:.3f}"
        if self._live is not None:
            test = f"  {self.evaluated_on} acc {self.history[-1].test_accuracy:.3f}" if self.history else ""
            self._live.update(self._live.task_ids[0], completed=step, status=status + test)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self.say(f"{status}  step {step}/{total}  about {clock(elapsed / step * (total - step))} left")
            self._last_line = now

    def _draw(self) -> None:
        picture = draw_curves(self.history, self.num_epochs, self.evaluated_on)
        write_whole(self.folder / "curves.png", picture)
        self._last_curves, self._drawn_epochs = time.perf_counter(), len(self.history)
        if self.show and _is_notebook():
            from IPython.display import Image, display  # it is there: we run in it

            if self._notebook_display is None:
                self._notebook_display = display(Image(picture), display_id=True)
            else:
                self._notebook_display.update(Image(picture))


def draw_curves(history: Sequence[EpochMetrics], num_epochs: int, evaluated_on: str = "test") -> bytes:
    """The book's picture as PNG: training loss, training accuracy and test accuracy over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    epochs = [metrics.epoch for metrics in history]
    for label, style, values in (
        ("train loss", "C0-", [metrics.train_loss for metrics in history]),
        ("train acc", "C1--", [metrics.train_accuracy for metrics in history]),
        (f"{evaluated_on} acc", "C2-.", [metrics.test_accuracy for metrics in history]),
    ):
        axes.plot(epochs, values, style, label=label, marker="." if num_epochs <= 20 else None)
    axes.set(xlabel="epoch", xlim=(0.5, num_epochs + 0.5), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.4)
    axes.legend()
    return as_png(figure)


def clock(seconds: float) -> str:
    """`75.2` as `1:15`, `4000` as `1:06:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not _is_notebook()


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _live_display(total_steps: int) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    live = Progress(
        TextColumn("{task.fields[status]}", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
        transient=True,
    )
    live.add_task("train", total=total_steps, status="starting")
    live.start()
    return live
