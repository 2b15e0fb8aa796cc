"""Batches read ahead by worker processes: torch's DataLoader, made to fail in one line and to leave nobody behind.

Pixels go through memory that this process shares with its workers before they start; only short messages go through
DataLoader's queues. A worker may so stop at any moment, and this process does not wait for it inside of torch.
"""

import atexit
import ctypes
import os
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from vggkit.data.reading import Bad, Reader, Reading, Slots, Status, Task, read_one
from vggkit.data.samples import Images
from vggkit.errors import DataError, LoadingError, one_line

__all__ = ["Loader", "LoadingError"]

HANG_SECONDS = 10.0
"""A worker hangs when it is waited for and does not finish an image in this time."""

STREAM_START_SECONDS = 120.0
"""The same for the first image of a stream in an epoch: those before it are passed over first."""

POLL_SECONDS = 0.5
"""So often a worker that is waited for is looked at."""

KILL_SECONDS = 2.0
"""So long the killed are waited for; one that is stuck in the kernel is left to it."""

PROBED_IMAGES = 100
"""So many images are tried for one that tells the shape of all."""

MOST_BAD_IN_A_ROW = 100
"""More than these are not skipped in an epoch, which shuffles: a disk or a folder is gone. Epoch 0 does not."""

NAMED_BAD_IMAGES = 3

# Ctrl-C and preemption reach the whole process group; what becomes of the workers is for the main process to decide.
_NOT_FOR_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_START_METHOD = "fork" if sys.platform == "linux" else "spawn"
_PR_SET_PDEATHSIG = 1
_torch_signals: Any = signal_handling


def default_workers() -> int:
    """Half of the cores that this process may have, at most 16; what is left computes."""
    # A job on a cluster may have 8 of a machine's 128.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores // (2 * local_processes()))


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun says; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def in_parts(positions: npt.NDArray[np.int64], part_size: int) -> list[npt.NDArray[np.int64]]:
    """`positions` in their order, in parts of `part_size` for `Loader.batches`; the last one may be smaller."""
    return [positions[start : start + part_size] for start in range(0, len(positions), part_size)]


class _Workers:
    """Processes that read; gone after `end`, which any failure comes to, or when this object or Python ends."""

    def __init__(self, reading: Reading, num_workers: int, ahead: int) -> None:
        self.reading, self.num_workers = reading, num_workers
        self._tasks: list[Task] = []
        self._ahead = ahead
        self._loader: DataLoader[Bad | str] | None = None
        self._iterator: Any = None
        self._processes: list[Any] = []
        self._finalizer: Callable[[], object] = str

    def begin(self, tasks: list[Task], most_images: int) -> bool:
        """Give out the tasks; False if others must do them: for want of room, or because these do not answer."""
        if self.reading.slots.labels.shape[1] < most_images:
            return False
        self._tasks[:] = tasks
        if self._loader is None:
            self._start()
            return True
        self._refuse_if_one_ended()
        try:
            iter(self._loader)
        except RuntimeError:
            return False
        return True

    def outcome(self, number: int) -> Bad:
        """What came of task `number`; to be asked for in order.

        Raises:
            LoadingError: a worker ended, raised an error or hangs.
        """
        worker = number % self.num_workers  # DataLoader deals the tasks out in turn
        status = self.reading.statuses[worker]
        finished, quiet_seconds = status.finished, 0.0
        starts_stream = self.reading.images.is_stream and number < self.num_workers
        hang_seconds = STREAM_START_SECONDS if starts_stream else HANG_SECONDS
        while True:
            try:
                outcome: Bad | str = next(self._iterator)
            except Exception as error:  # what a dying worker leaves in a queue makes almost anything of it
                self._refuse_if_one_ended()
                if "timed out" not in str(error):
                    raise LoadingError(
                        f"expected batches of {self.num_workers} workers, got {one_line(error)}"
                    ) from error
            else:
                if isinstance(outcome, str):
                    raise LoadingError(f"{self._of(worker)}: {outcome}, try --workers 0 to see where")
                return outcome
            # Counted, not measured: while a whole process group is stopped, by Ctrl-Z say, nobody hangs.
            quiet_seconds += POLL_SECONDS
            if status.finished != finished:
                finished, quiet_seconds, hang_seconds = status.finished, 0.0, HANG_SECONDS
            if quiet_seconds >= hang_seconds:
                raise LoadingError(
                    f"{self._of(worker)} has not finished an image for {hang_seconds:g} seconds"
                    f"{self._doing(worker)}, try whether that can be read, or --workers 0"
                )

    def _start(self) -> None:
        # Blocked before they are there, and so for good; they inherit what is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: the user's choice
                warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # they use one thread
                self._loader = DataLoader(
                    self.reading,
                    batch_size=None,
                    sampler=self._tasks,
                    collate_fn=_unchanged,
                    num_workers=self.num_workers,
                    prefetch_factor=self._ahead,
                    persistent_workers=True,
                    timeout=POLL_SECONDS,
                    worker_init_fn=partial(_prepare_worker, os.getpid()),
                    multiprocessing_context=_START_METHOD,
                    generator=torch.Generator(),  # or it would draw from the one that the training draws from
                )
                self._iterator = iter(self._loader)
        except Exception as error:
            raise LoadingError(
                f"expected to start {self.num_workers} workers, got {type(error).__name__}: {one_line(error)}, "
                "try fewer --workers, or 0, or a larger /dev/shm"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._processes = self._iterator._workers
        # torch's handler of SIGCHLD raises an error wherever the main process is, for workers that it knows of.
        _torch_signals._remove_worker_pids(id(self._iterator))
        self._finalizer = weakref.finalize(self, _kill, os.getpid(), self._iterator, self._processes)
        # Called before multiprocessing's own end, which asks with SIGTERM and then waits for ever.
        atexit.register(self._finalizer)

    def end(self) -> None:
        """Kill the workers, whatever they are at."""
        self._finalizer()
        atexit.unregister(self._finalizer)

    def _refuse_if_one_ended(self) -> None:
        for worker, process in enumerate(self._processes):
            if process.exitcode is None:
                continue
            if process.exitcode >= 0:
                how, why = f"ended with code {process.exitcode}", "try --workers 0 to see where"
            else:
                how = f"was killed by signal {-process.exitcode} ({signal.strsignal(-process.exitcode)})"
                lacks_memory = -process.exitcode in (signal.SIGKILL, signal.SIGBUS)
                why = "perhaps for lack of memory, try fewer --workers" if lacks_memory else "try --workers 0"
            raise LoadingError(f"{self._of(worker)} {how}{self._doing(worker)}, {why}")

    def _of(self, worker: int) -> str:
        return f"worker {worker + 1} of {self.num_workers} (process {self._processes[worker].pid})"

    def _doing(self, worker: int) -> str:
        name = self.reading.statuses[worker].reading.decode(errors="replace")
        return f" while reading {name}" if name else ""


class Loader:
    """Batches of the images of a split, as `read` makes them; how many workers there are changes nothing in them.

    Workers are made at the first batch and kept. They ignore SIGINT, SIGTERM and SIGUSR1, and die with the thread
    that made them. A loader is to be closed, best by `with`.
    """

    bad: dict[str, str]
    """The bad images met so far, in order: name and reason."""

    def __init__(
        self,
        images: Images,
        read: Reader,
        *,
        seed: int,
        num_workers: int,
        pin_memory: bool,
        bad_images: Literal["fail", "skip"],
        ahead: int = 2,
    ) -> None:
        """Take what to load; nothing is read yet.

        Args:
            images: what there is.
            read: makes a tensor of a sample.
            seed: of the order of a stream.
            num_workers: processes beside this one; with 0, this one reads.
            pin_memory: put batches into pinned memory, for copies to a GPU; where there is no GPU, nothing is pinned.
            bad_images: `fail` at the first batch with a bad image, or `skip` them: zeros, with the label -100.
            ahead: batches that each worker reads ahead.
        """
        self.bad, self._bad_in_a_row = {}, 0
        self._images, self._read, self._seed = images, read, seed
        self._num_workers, self._ahead, self._bad_images = num_workers, ahead, bad_images
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._shape: tuple[int, ...] | None = None
        self._workers: _Workers | None = None
        self._run, self._is_running = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers, whatever they are at; `batches` would make new ones."""
        self._is_running = False
        self._run += 1
        if self._workers is not None:
            self._workers.end()
            self._workers = None

    def batches(self, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches, in order. A new call ends the one before; workers of a call that is not read on are killed.

        Args:
            parts: for each batch, the positions of its images in the split; ascending throughout for a stream.
            epoch: goes to the order of a stream and to the reader.

        Yields:
            uint8 (images, channels, height, width) and int64 labels (images,), new tensors each time.

        Raises:
            DataError: images are bad and `bad_images` is `fail`; or none of 100 in a row can be read.
            LoadingError: a worker was killed, raised an error or hangs; all are gone then, as after any error.
        """
        if self._is_running:
            self.close()
        if not any(map(len, parts)):
            return
        self._run = run = self._run + 1
        self._is_running = True
        try:
            for number, (task, slots, bad) in enumerate(self._outcomes(parts, epoch)):
                size = len(task.positions)
                self._note(bad, size, epoch)
                batch = self._own(slots.pixels[task.slot, :size]), self._own(slots.labels[task.slot, :size])
                self._is_running = number + 1 < len(parts)
                yield batch
                if self._run != run:
                    raise LoadingError("expected one reading of batches at a time, got a newer one, or a closed loader")
        finally:
            if self._run == run and self._is_running:
                self.close()

    def _outcomes(self, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> Iterator[tuple[Task, Slots, Bad]]:
        shape = self._shape = self._shape or self._probed(parts, epoch)
        num_slots = self._num_workers * self._ahead + 1  # one more than can be under way: the one that is copied
        tasks = [Task(self._run, epoch, number % num_slots, part) for number, part in enumerate(parts)]
        most_images = max(map(len, parts))
        if not self._num_workers:
            here = Reading(self._images, self._read, self._seed, Slots.shared(1, most_images, shape), [Status()])
            for task in tasks:
                yield task, here.slots, here.batch(task)
            return
        if self._workers is None or not self._workers.begin(tasks, most_images):
            if self._workers is not None:
                self._workers.end()
            slots = Slots.shared(num_slots, most_images, shape)
            statuses: Any = get_context(_START_METHOD).RawArray(Status, self._num_workers)
            reading = Reading(self._images, self._read, self._seed, slots, statuses)
            self._workers = _Workers(reading, self._num_workers, self._ahead)
            self._workers.begin(tasks, most_images)
        for number, task in enumerate(tasks):
            bad = self._workers.outcome(number)
            yield task, self._workers.reading.slots, bad

    def _probed(self, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> tuple[int, ...]:
        """The shape of the first image that can be read; the memory for batches is made from it."""
        sample_at = self._images.reader(self._seed, epoch)
        reasons = []
        at_hand = [range(len(self._images))] if self._images.is_stream else (part.tolist() for part in parts)
        for position in islice(chain.from_iterable(at_hand), PROBED_IMAGES):
            name, _, image = read_one(sample_at, self._read, epoch, position, Status())
            if isinstance(image, Tensor):
                return tuple(image.shape)
            reasons.append(f"{name}: {image}")
        raise DataError(f"expected an image that can be read, got none in {len(reasons)}, the first is {reasons[0]}")

    def _note(self, bad: Bad, num_images: int, epoch: int) -> None:
        for name, reason in bad:
            self.bad.setdefault(name, reason)
        self._bad_in_a_row = self._bad_in_a_row + num_images if epoch and len(bad) == num_images else 0
        if self._bad_in_a_row > MOST_BAD_IN_A_ROW:
            raise DataError(
                f"expected images that can be read, got {self._bad_in_a_row} in a row that cannot, the last is "
                f"{': '.join(bad[-1])}, try whether the data is still there"
            )
        if bad and self._bad_images == "fail":
            named = "; ".join(f"{name}: {reason}" for name, reason in bad[:NAMED_BAD_IMAGES])
            more = f"; and {len(bad) - NAMED_BAD_IMAGES} more" if len(bad) > NAMED_BAD_IMAGES else ""
            raise DataError(
                f"expected images that can be read, got {len(bad)} in a batch of {num_images} that cannot: "
                f"{named}{more}, try --bad-images skip"
            )

    def _own(self, values: Tensor) -> Tensor:
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=self._pin_memory).copy_(values)


def _unchanged(outcome: Bad | str) -> Bad | str:
    return outcome


def _prepare_worker(parent: int, worker: int) -> None:
    """Die with the parent, also by its SIGKILL, and also where torch's own watch over it does not come to look."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _kill(parent: int, iterator: Any, processes: Sequence[Any]) -> None:
    if os.getpid() != parent:  # a copy in a process that somebody forked
        return
    iterator._shutdown = True  # torch's own end would wait for locks that a killed worker may have held
    for process in processes:
        process.kill()
    deadline = time.monotonic() + KILL_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
