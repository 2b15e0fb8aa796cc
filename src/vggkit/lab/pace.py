"""The progress of the runs of an experiment, and the time left, predicted and corrected by measurement."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vggkit.data.files import read_regular
from vggkit.training.progress import clock
from vggkit.weights.runs import METRICS

PRIOR_SECONDS = 10.0
"""The weight of the prediction, as seconds of measurement at the predicted pace."""


class Pace:
    """The pace of runs, from its creation on; the progress of each is read from its `metrics.jsonl`."""

    def __init__(self, runs: Mapping[Path, tuple[float, int]]) -> None:
        """`runs` gives for each run folder its predicted seconds and its steps."""
        self._runs, self._ended = runs, set[Path]()
        self._total_seconds = sum(seconds for seconds, _ in runs.values())
        self._begin, self._done_before = time.perf_counter(), self._done_seconds

    def end(self, run: Path) -> None:
        """Record that a run has ended, perhaps before its last step."""
        self._ended.add(run)

    @property
    def share_done(self) -> float:
        """The share of all runs that is done, by predicted seconds, 0 to 1."""
        return self._done_seconds / self._total_seconds

    @property
    def seconds_left(self) -> float:
        """The wall time left at the measured pace."""
        done, taken = self._done_seconds - self._done_before, time.perf_counter() - self._begin
        return (self._total_seconds - self._done_seconds) * (taken + PRIOR_SECONDS) / (done + PRIOR_SECONDS)

    @property
    def _done_seconds(self) -> float:
        return sum(
            seconds * (1.0 if run in self._ended else _share_done(run, steps))
            for run, (seconds, steps) in self._runs.items()
        )

    def __str__(self) -> str:
        return f"{len(self._ended)} of {len(self._runs)} runs, about {clock(self.seconds_left)} left"


def _share_done(run: Path, steps: int) -> float:
    """The share of its steps that a run has done, 0 to 1, by the last step in its metrics."""
    content = b""
    with suppress(OSError):  # not written yet
        content = read_regular(run / METRICS)[-2_000:]
    done = re.findall(rb'"step": ([0-9]{1,12})', content)
    return min(1.0, int(done[-1]) / steps) if done else 0.0


@contextmanager
def shown_live(pace: Pace) -> Iterator[bool]:
    """Within, show one progress bar for all runs if stderr is a terminal; yields whether it is."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def bar() -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(1.0, pace.share_done, width=30), f"{pace.share_done:.0%}", str(pace))
        return grid

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield False
        return
    with Live(get_renderable=bar, console=console, refresh_per_second=2, transient=True):
        yield True
