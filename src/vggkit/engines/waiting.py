"""How CPU threads wait for each other: by spinning, or by sleeping while another process needs a core.

OpenMP threads spin at the end of every parallel loop. That is fastest on an idle machine, but beside a busy process a
spinning thread keeps the core from the thread that it waits for, and a step on two cores drops to a third of its speed.
libgomp, which torch includes, lets its threads sleep after a short spin while a process has more threads than cores. A
helper thread with its own team causes that for as long as it lives. The number of computing threads, and so every bit
of the results, stays the same: batch norm and oneDNN sum in an order that depends on it. `benchmarks/busy.py` measures
the gain.
"""

import os
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

WINDOW_SECONDS = 0.3  # how long a mode is measured
PAUSE_SECONDS, LONG_PAUSE_SECONDS = 1.0, 60.0
"""Minimum time in a mode, doubled after each failed trial; and how long threads sleep before spinning is tried
again without a sign that the neighbour left: a spinning step may take seconds beside several neighbours."""
MISSING_CORES = 0.25
"""A spinning process that gets this much less CPU time than its threads request, in cores, has a neighbour."""
MIN_GAIN = 1.15
"""The speedup by which sleeping must beat spinning, and by which a speed suggests that the neighbour has gone."""


class Waiting:
    """Finds the faster mode of waiting by trial. All times are those of calls, without what is between them."""

    def __init__(self, threads: int) -> None:
        self.threads, self.is_asleep = threads, False
        self._sums: dict[Hashable, list[float]] = {}
        self._clock, self._next_trial, self._pause = 0.0, 0.0, PAUSE_SECONDS
        self._before_trial: tuple[Hashable, float] | None = None
        """During a trial: the kind of call that decides, and its rate before."""
        self._reference: tuple[Hashable, float] | None = None
        """The kind and rate with which the current mode won the last trial."""

    def add(self, kind: Hashable, amount: float, seconds: float, cpu_seconds: float) -> None:
        """Count a call of `kind` with `amount` of work; may switch modes. Only calls of one kind are compared."""
        self._clock += seconds
        sums = self._sums.setdefault(kind, [0.0, 0.0, 0.0])
        sums[:] = [a + b for a, b in zip(sums, (amount, seconds, cpu_seconds), strict=True)]
        if sums[1] < WINDOW_SECONDS:
            return
        del self._sums[kind]
        rate, missing = sums[0] / sums[1], self.threads - sums[2] / sums[1]
        if self._before_trial is None:
            if not self._may_be_slower(kind, rate, missing):
                self._pause = PAUSE_SECONDS
            elif self._clock >= self._next_trial:
                self._before_trial = kind, rate
                self._switch()
        elif self._before_trial[0] == kind or self._clock > self._next_trial + LONG_PAUSE_SECONDS:
            trial_kind, old_rate = self._before_trial
            is_better = trial_kind == kind and rate > old_rate * (MIN_GAIN if self.is_asleep else 1)
            self._reference = (kind, rate) if is_better else self._before_trial
            self._pause = PAUSE_SECONDS if is_better else min(2 * self._pause, LONG_PAUSE_SECONDS)
            self._before_trial, self._next_trial = None, self._clock + self._pause
            if not is_better:
                self._switch()

    def _may_be_slower(self, kind: Hashable, rate: float, missing: float) -> bool:
        """Whether the current mode may be the slower one."""
        if not self.is_asleep:
            return missing > MISSING_CORES
        if self._reference is not None and self._reference[0] == kind and rate > MIN_GAIN * self._reference[1]:
            return True
        return self._clock > self._next_trial + LONG_PAUSE_SECONDS

    def _switch(self) -> None:
        self.is_asleep = not self.is_asleep
        self._sums.clear()


_lock = threading.Lock()
_waiting: Waiting | None = None
_helper_exit: threading.Event | None = None


def is_asleep() -> bool:
    """Whether waiting threads sleep, because another process is busy."""
    return _waiting is not None and _waiting.is_asleep


@contextmanager
def watched(kind: Hashable, amount: float, device_type: str = "cpu") -> Iterator[None]:
    """Measure the body, a call of `kind` with `amount` of work, and choose the mode for the next ones.

    Does nothing when nested, in concurrent threads, with fewer threads than cores, and on a GPU.
    """
    global _waiting
    threads = torch.get_num_threads()
    takes_all_cores = hasattr(os, "sched_getaffinity") and threads == len(os.sched_getaffinity(0)) > 1
    if device_type != "cpu" or not takes_all_cores or not _lock.acquire(blocking=False):
        yield
        return
    try:
        if _waiting is None or _waiting.threads != threads:
            _waiting = Waiting(threads)
            let_sleep(False)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        _waiting.add(kind, amount, time.perf_counter() - wall, time.process_time() - cpu)
        let_sleep(_waiting.is_asleep)
    finally:
        _lock.release()


@contextmanager
def left_alone() -> Iterator[None]:
    """A context in which nothing is measured or chosen."""
    with _lock:
        yield


def let_sleep(on: bool) -> None:
    """Let waiting threads sleep or spin from the next parallel loop on."""
    global _helper_exit
    if on == (_helper_exit is not None):
        return
    if _helper_exit is not None:
        _helper_exit.set()  # its end removes its team
        _helper_exit = None
        return
    _helper_exit, ready = threading.Event(), threading.Event()

    def hold_team(leave: threading.Event) -> None:
        torch.zeros(2**20).add_(1)  # creates this thread's team
        ready.set()
        leave.wait()

    threading.Thread(target=hold_team, args=(_helper_exit,), daemon=True).start()
    ready.wait()
