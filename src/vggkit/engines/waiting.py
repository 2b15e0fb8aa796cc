"""How the threads of a CPU wait for each other: they spin, or they sleep while another process wants a core.

OpenMP's threads spin at the end of every parallel loop. That is fastest on an idle machine, but beside a busy process
a spinning thread keeps the core from the one that it waits for, and a step on two cores falls to a third of its speed.
libgomp, which torch brings, lets its threads sleep after a short spin while a process has more threads than cores.
A helper thread with a team of its own makes it so for as long as it lives. The number of threads that compute stays
the same, and with it every bit of the results: batch norm and oneDNN add up in an order that depends on it.
`benchmarks/busy.py` measures what it brings.
"""

import os
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

WINDOW_SECONDS = 0.3
"""How long a way of waiting is measured."""
PAUSE_SECONDS, LONG_PAUSE_SECONDS = 1.0, 60.0
"""How long a way is kept at least, twice as long after each trial in vain; and how long threads sleep without a sign
that the neighbour has gone: a single step with spinning threads may take seconds beside several neighbours."""
MISSING_CORES = 0.25
"""A process that spins and gets this much less processor time than its threads ask for has a neighbour."""
MIN_GAIN = 1.15
"""How much faster sleeping must be than spinning, and how much faster than before once the neighbour may have gone."""


class Waiting:
    """Which way of waiting is the faster one, by trial. Times are of the calls alone, not of what is between them."""

    def __init__(self, threads: int) -> None:
        self.threads, self.is_asleep = threads, False
        self._sums: dict[Hashable, list[float]] = {}
        self._clock, self._next_trial, self._pause = 0.0, 0.0, PAUSE_SECONDS
        self._left: tuple[Hashable, float] | None = None
        """While a way is tried: the kind of call that decides, and its rate before."""
        self._kept: tuple[Hashable, float] | None = None
        """Of the way that was found faster, while it is kept."""

    def add(self, kind: Hashable, amount: float, seconds: float, cpu_seconds: float) -> None:
        """Count a call of `kind` that did `amount` of work, and change the way of waiting if that pays.

        Only calls of one kind are compared with each other.
        """
        self._clock += seconds
        sums = self._sums.setdefault(kind, [0.0, 0.0, 0.0])
        sums[:] = [a + b for a, b in zip(sums, (amount, seconds, cpu_seconds), strict=True)]
        if sums[1] < WINDOW_SECONDS:
            return
        del self._sums[kind]
        rate, missing = sums[0] / sums[1], self.threads - sums[2] / sums[1]
        if self._left is None:
            has_doubts = self._doubts(kind, rate, missing)
            if not has_doubts:
                self._pause = PAUSE_SECONDS
            elif self._clock >= self._next_trial:
                self._left = kind, rate
                self._change()
        elif self._left[0] == kind or self._clock > self._next_trial + LONG_PAUSE_SECONDS:
            is_better = self._left[0] == kind and rate > self._left[1] * (MIN_GAIN if self.is_asleep else 1)
            self._kept = (kind, rate) if is_better else self._left
            self._pause = PAUSE_SECONDS if is_better else min(2 * self._pause, LONG_PAUSE_SECONDS)
            self._left, self._next_trial = None, self._clock + self._pause
            if not is_better:
                self._change()

    def _doubts(self, kind: Hashable, rate: float, missing: float) -> bool:
        """Whether the other way may be faster."""
        if not self.is_asleep:
            return missing > MISSING_CORES
        is_faster_than_before = self._kept is not None and self._kept[0] == kind and rate > MIN_GAIN * self._kept[1]
        return is_faster_than_before or self._clock > self._next_trial + LONG_PAUSE_SECONDS

    def _change(self) -> None:
        self.is_asleep = not self.is_asleep
        self._sums.clear()


_lock = threading.Lock()
_waiting: Waiting | None = None
_leave: threading.Event | None = None


def is_asleep() -> bool:
    """Whether threads sleep while they wait, since another process is busy."""
    return _waiting is not None and _waiting.is_asleep


@contextmanager
def watched(kind: Hashable, amount: float, device_type: str = "cpu") -> Iterator[None]:
    """Measure what is within, a call of `kind` with `amount` of work, and choose how threads wait in the next ones.

    It does nothing within another one, in several threads at once, with fewer threads than cores, and on a GPU.
    """
    global _waiting
    threads = torch.get_num_threads()
    if device_type != "cpu" or not _can_choose(threads) or not _lock.acquire(blocking=False):
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
    """Within, nothing is measured or chosen."""
    with _lock:
        yield


def _can_choose(threads: int) -> bool:
    return threads > 1 and hasattr(os, "sched_getaffinity") and threads == len(os.sched_getaffinity(0))


def let_sleep(on: bool) -> None:
    """Let waiting threads sleep, or spin, from the next parallel loop on."""
    global _leave
    if on == (_leave is not None):
        return
    if _leave is not None:
        _leave.set()  # libgomp counts the helper's team no more when it ends
        _leave = None
        return
    _leave, ready = threading.Event(), threading.Event()

    def help_out(leave: threading.Event) -> None:
        torch.zeros(2**20).add_(1)  # in a team of this thread's own
        ready.set()
        leave.wait()

    threading.Thread(target=help_out, args=(_leave,), daemon=True).start()
    ready.wait()
