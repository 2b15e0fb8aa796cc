"""Live progress on a terminal, plain lines elsewhere, curves in a picture and in a notebook."""

import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from vggkit.data.files import as_png, write_all, write_whole
from vggkit.engines import waiting
from vggkit.errors import shown
from vggkit.training.curves import curves
from vggkit.training.run_state import EpochMetrics
from vggkit.training.step import Training
from vggkit.weights.runs import METRICS

REFRESH_SECONDS = 0.5
PLAIN_LINE_SECONDS = 30.0
CURVES_SECONDS = 10.0
LINE_CHARACTERS = 1_000
LOGGED_STEPS = 1_000  # approximate number of step lines of a whole run in metrics.jsonl


class Progress:
    """The display of a run, and its `metrics.jsonl` and `curves.png` in `folder`, if there is one."""

    def __init__(self, training: Training, folder: Path | None, show: bool) -> None:
        self.folder, self.show = folder, show
        self._recipe, self._state, self._steps_per_epoch = training.recipe, training.state, training.steps_per_epoch
        self._classes = training.data.classes
        self._evaluated_on, self._start_step = training.data.held_out_name, training.state.step
        self._total_steps = self._recipe.epochs * self._steps_per_epoch
        self._start = self._last_refresh = self._last_line = time.perf_counter()
        self._last_curves, self._drawn_epochs = -CURVES_SECONDS, 0
        self._metrics = (folder / METRICS).open("ab", buffering=0) if folder is not None else None
        self._live = _live_display(self._total_steps, self._start_step) if show and _is_terminal() else None
        self._notebook_display: Any = None
        self._was_asleep = False

    def log(self, event: str, **values: object) -> None:
        """Add a line to `metrics.jsonl`; raises `OSError`."""
        if self._metrics is None:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            write_all(self._metrics.fileno(), json.dumps({"event": event, **finite}, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._metrics.name) from None

    def say(self, line: str) -> None:
        """Show a permanent line, made safe to print."""
        if self._live is not None:
            self._live.console.print(shown(line, LINE_CHARACTERS), highlight=False, markup=False)
        elif self.show:
            print_line(line)

    def step(self, step: int) -> None:
        """Show and log `step`, counted from 1, whose outcome is in the state."""
        loss_sum, correct, count = self._state.sums
        loss, accuracy = loss_sum / max(count, 1), correct / max(count, 1)
        if step % -(-self._total_steps // LOGGED_STEPS) == 0:  # not by time, so that a resumed run logs the same
            self.log("step", step=step, train_loss=loss, train_accuracy=accuracy)
        if waiting.is_asleep() != self._was_asleep:
            self._was_asleep = not self._was_asleep
            self.log("threads", step=step, sleep_while_waiting=self._was_asleep)
        now = time.perf_counter()
        if now - self._last_refresh < REFRESH_SECONDS:
            return
        self._last_refresh = now
        epoch = (step - 1) // self._steps_per_epoch + 1
        bottleneck = _bottleneck(self._state.loading_seconds, self._state.train_seconds)
        status = f"epoch {epoch}/{self._recipe.epochs}  loss {loss:.3f}  train acc {accuracy:.3f}  {bottleneck}"
        if self._live is not None:
            history = self._state.history
            test = f"  {self._evaluated_on} acc {history[-1].test_accuracy:.3f}" if history else ""
            self._live.update(self._live.task_ids[0], completed=step, status=status + test)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            left_seconds = (now - self._start) / (step - self._start_step) * (self._total_steps - step)
            self.say(f"{status}  step {step}/{self._total_steps}  about {clock(left_seconds)} left")
            self._last_line = now

    def epoch(self, metrics: EpochMetrics, confusion: Tensor | None = None) -> None:
        """Show and log a finished epoch, with the confusion matrix if there is one."""
        if confusion is not None:
            counts = confusion.long().tolist()
            self.log("confusion", epoch=metrics.epoch, classes=self._classes, counts=counts)
        self.log("epoch", **asdict(metrics))
        self.say(
            f"epoch {metrics.epoch:>{len(str(self._recipe.epochs))}}/{self._recipe.epochs}  "
            f"loss {metrics.train_loss:.3f}, train acc {metrics.train_accuracy:.3f}, "
            f"{self._evaluated_on} acc {metrics.test_accuracy:.3f}  "
            f"{metrics.examples_per_second:,.0f} examples/s  {clock(metrics.elapsed_seconds)}"
            f"  {_bottleneck(metrics.loading_seconds, metrics.train_seconds)}"
        )
        self._last_line = time.perf_counter()
        if self._last_line - self._last_curves >= CURVES_SECONDS or _is_notebook():
            self._draw()

    def close(self) -> None:
        """End the display and the log, also after an error."""
        if self._live is not None:
            self._live.stop()
        try:
            if len(self._state.history) > self._drawn_epochs:
                self._draw()
        finally:
            if self._metrics is not None:
                self._metrics.close()

    def _draw(self) -> None:
        if self.folder is None:
            return
        title = f"{self._recipe.architecture} on {Path(self._recipe.data).name}"
        picture = as_png(curves(self._state.history, self._recipe.epochs, self._evaluated_on, title))
        write_whole(self.folder / "curves.png", picture)
        self._last_curves, self._drawn_epochs = time.perf_counter(), len(self._state.history)
        if self.show and _is_notebook():
            from IPython.display import Image, display  # installed, since this is a notebook

            if self._notebook_display is None:
                self._notebook_display = display(Image(picture), display_id=True)
            else:
                self._notebook_display.update(Image(picture))


def print_line(line: str) -> None:
    """Print `line`; a closed pipe, as in `vgg train | head`, is ignored."""
    try:
        print(shown(line, LINE_CHARACTERS), flush=True)
    except UnicodeEncodeError:  # a terminal without UTF-8, called from Python
        print_line(line.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError):
        pass


def _bottleneck(loading_seconds: float, train_seconds: float) -> str:
    """Whether loading or computing limits the speed, the share of loading, and a note on a busy neighbour."""
    loading_share = min(loading_seconds / max(train_seconds, 1e-9), 1.0)
    limit = "loading" if loading_share > 0.5 else "compute"
    return f"{limit}-bound (loading {loading_share:.0%})" + ", beside a busy process" * waiting.is_asleep()


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


def _live_display(total_steps: int, start_step: int) -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    live = Progress(
        TextColumn("{task.fields[status]}", markup=False, table_column=Column()),  # wraps in a narrow terminal
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        transient=True,
    )
    # The estimate of the remaining time must not count the steps before a resume.
    live.add_task("train", total=total_steps, completed=start_step, status="starting")
    live.start()
    return live
