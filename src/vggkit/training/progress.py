"""Live progress on a terminal, plain lines elsewhere, curves in a picture and in a notebook."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vggkit.data.files import write_all, write_whole
from vggkit.engines import waiting
from vggkit.errors import shown
from vggkit.training.curves import draw_curves
from vggkit.training.run_state import EpochMetrics

REFRESH_SECONDS = 0.5
PLAIN_LINE_SECONDS = 30.0
CURVES_SECONDS = 10.0
LINE_CHARACTERS = 1_000
LOGGED_STEPS = 1_000
"""Lines of a whole run in metrics.jsonl, about, beside those of its epochs."""


class Progress:
    """What a run shows while it goes on, and its `metrics.jsonl` and `curves.png`."""

    def __init__(
        self,
        folder: Path | None,
        num_epochs: int,
        steps_per_epoch: int,
        evaluated_on: str,
        show: bool,
        history: Sequence[EpochMetrics] = (),
        start_step: int = 0,
        title: str = "",
    ) -> None:
        """A run that begins or, with the `history` and `start_step` of before, goes on; metrics are added.

        Without a folder nothing is written. `title` stands above the curves.
        """
        self.folder, self.num_epochs, self.steps_per_epoch = folder, num_epochs, steps_per_epoch
        self.evaluated_on, self.show, self.title = evaluated_on, show, title
        self.history = list(history)
        self.log_steps = -(-num_epochs * steps_per_epoch // LOGGED_STEPS)
        self._start_step = start_step
        self._start = self._last_refresh = self._last_line = time.perf_counter()
        self._last_curves, self._drawn_epochs = -CURVES_SECONDS, 0
        self._metrics = (folder / "metrics.jsonl").open("ab", buffering=0) if folder is not None else None
        self._live = _live_display(num_epochs * steps_per_epoch, start_step) if show and _is_terminal() else None
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
        """Show a line that stays, with what it quotes from files made safe to print."""
        if self._live is not None:
            self._live.console.print(shown(line, LINE_CHARACTERS), highlight=False, markup=False)
        elif self.show:
            self.show = print_line(line)

    def step(self, step: int, sums: Sequence[float], loading_share: float = 0.0) -> None:
        """After each step.

        Args:
            step: counted from 1, since the start of the run.
            sums: of the epoch so far: loss x images, correct, images.
            loading_share: of the epoch's wall time so far, 0 to 1.
        """
        loss, accuracy = (value / max(sums[2], 1) for value in sums[:2])
        if step % self.log_steps == 0:  # by steps and not by time: a run that was resumed logs the same
            self.log("step", step=step, train_loss=loss, train_accuracy=accuracy)
        if waiting.is_asleep() != self._was_asleep:
            self._was_asleep = not self._was_asleep
            self.log("threads", step=step, sleep_while_waiting=self._was_asleep)
        now = time.perf_counter()
        if now - self._last_refresh >= REFRESH_SECONDS:
            self._last_refresh = now
            self._show_step(step, loss, accuracy, loading_share)

    def epoch(self, metrics: EpochMetrics) -> None:
        """After each epoch."""
        self.history.append(metrics)
        self.log("epoch", **asdict(metrics))
        self.say(
            f"epoch {metrics.epoch:>{len(str(self.num_epochs))}}/{self.num_epochs}  "
            f"loss {metrics.train_loss:.3f}, train acc {metrics.train_accuracy:.3f}, "
            f"{self.evaluated_on} acc {metrics.test_accuracy:.3f}  "
            f"{metrics.examples_per_second:,.0f} examples/s  {clock(metrics.elapsed_seconds)}"
            f"  {_bound(metrics.loading_seconds / max(metrics.train_seconds, 1e-9))}"
        )
        self._last_line = time.perf_counter()
        if self._last_line - self._last_curves >= CURVES_SECONDS or _is_notebook():
            self._draw()

    def close(self) -> None:
        """At the end, whatever the end was."""
        if self._live is not None:
            self._live.stop()
        try:
            if len(self.history) > self._drawn_epochs:
                self._draw()
        finally:
            if self._metrics is not None:
                self._metrics.close()

    def _show_step(self, step: int, loss: float, accuracy: float, loading_share: float) -> None:
        now = time.perf_counter()
        total = self.num_epochs * self.steps_per_epoch
        epoch = (step - 1) // self.steps_per_epoch + 1
        status = f"epoch {epoch}/{self.num_epochs}  loss {loss:.3f}  train acc {accuracy:.3f}  {_bound(loading_share)}"
        if self._live is not None:
            test = f"  {self.evaluated_on} acc {self.history[-1].test_accuracy:.3f}" if self.history else ""
            self._live.update(self._live.task_ids[0], completed=step, status=status + test)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            left_seconds = (now - self._start) / (step - self._start_step) * (total - step)
            self.say(f"{status}  step {step}/{total}  about {clock(left_seconds)} left")
            self._last_line = now

    def _draw(self) -> None:
        if self.folder is None:
            return
        picture = draw_curves(self.history, self.num_epochs, self.evaluated_on, self.title)
        write_whole(self.folder / "curves.png", picture)
        self._last_curves, self._drawn_epochs = time.perf_counter(), len(self.history)
        if self.show and _is_notebook():
            from IPython.display import Image, display  # it is there: we run in it

            if self._notebook_display is None:
                self._notebook_display = display(Image(picture), display_id=True)
            else:
                self._notebook_display.update(Image(picture))


def print_line(line: str) -> bool:
    """Print `line`; whether somebody reads it: in `vgg train | head` nobody does any more, and training goes on."""
    try:
        print(shown(line, LINE_CHARACTERS), flush=True)
    except UnicodeEncodeError:  # a terminal without UTF-8, in a program that is not ours
        return print_line(line.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError):
        return False
    return True


def _bound(loading_share: float) -> str:
    """What a run is bound by, the share of its wall time in which it waits for images, and who else is there."""
    bound = "loading" if loading_share > 0.5 else "compute"
    return f"{bound}-bound (loading {loading_share:.0%})" + ", beside a busy process" * waiting.is_asleep()


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
        TextColumn("{task.fields[status]}", markup=False, table_column=Column()),  # folded, where all is too wide
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        transient=True,
    )
    # From where it goes on: the steps before a resume were not taken in this time.
    live.add_task("train", total=total_steps, completed=start_step, status="starting")
    live.start()
    return live
