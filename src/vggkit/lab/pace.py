"""How far the runs of an experiment are, and how long they still take: what was predicted, by what is measured."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vggkit.data.files import read_regular
from vggkit.training.progress import clock
from vggkit.weights.runs import METRICS

PRIOR_SECONDS = 10.0
"""How much of a measurement the prediction counts for: a first run is too short to be trusted alone."""


class Pace:
    """The pace of runs from now on, wherever they run: how far each is, its own `metrics.jsonl` says."""

    def __init__(self, runs: Mapping[Path, tuple[float, int]]) -> None:
        """`runs` gives for each run folder its predicted seconds and its steps."""
        self._runs, self._ended = runs, set[Path]()
        self._begin, self._done_before = time.perf_counter(), self._done_seconds

    def end(self, run: Path) -> None:
        """Note that a run has ended, perhaps before its last step."""
        self._ended.add(run)

    @property
    def share_done(self) -> float:
        """Of all runs, by their predicted seconds, 0 to 1."""
        return self._done_seconds / self._total_seconds

    @property
    def seconds_left(self) -> float:
        """Of wall time, at the pace so far."""
        done, taken = self._done_seconds - self._done_before, time.perf_counter() - self._begin
        return (self._total_seconds - self._done_seconds) * (taken + PRIOR_SECONDS) / (done + PRIOR_SECONDS)

    @property
    def _total_seconds(self) -> float:
        return sum(seconds for seconds, _ in self._runs.values())

    @property
    def _done_seconds(self) -> float:
        """The predicted seconds of the steps that were taken."""
        shares = {run: 1.0 if run in self._ended else _share_done(run, steps) for run, (_, steps) in self._runs.items()}
        return sum(share * self._runs[run][0] for run, share in shares.items())

    def __str__(self) -> str:
        return f"{len(self._ended)} of {len(self._runs)} runs, about {clock(self.seconds_left)} left"


def _share_done(run: Path, steps: int) -> float:
    """Of the steps of a run, 0 to 1, by the last line of its metrics that tells one."""
    content = b""
    with suppress(OSError):  # there is none yet
        content = read_regular(run / METRICS)[-2_000:]
    found = re.findall(rb'"step": ([0-9]{1,12})', content)
    return min(1.0, int(found[-1]) / steps) if found else 0.0


@contextmanager
def shown_live(pace: Pace) -> Iterator[bool]:
    """Show a bar for all runs together while they go on, if stderr is a terminal; yields whether it is."""
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
