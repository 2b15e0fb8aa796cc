"""Batches that threads decode ahead: Pillow releases the GIL while it decodes and resizes."""

import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vggkit.data.samples import IGNORED_LABEL, Images, Sample, with_digest
from vggkit.errors import DataError, LoadingError, one_line

READ_SECONDS = 60.0
"""Time limit for reading one image of an awaited batch from a disk that may hang; decoding takes a few seconds."""
STREAM_SECONDS = 120.0  # the same for the next image of a stream, which skips others first
POLL_SECONDS = 0.5  # interval of the checks
BATCHES_AHEAD = 2  # for each thread
MAX_BAD_IN_A_ROW = 100  # more bad images in a row in a shuffled epoch are an error: the disk or folder is probably gone
NAMED_BAD_IMAGES = 3

Value = TypeVar("Value")
Pixels = npt.NDArray[np.uint8]


class Reader(Protocol):
    """Decodes a sample; called from several threads at the same time."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""

    def __call__(self, sample: Sample, epoch: int, position: int) -> Pixels:
        """uint8 of `shape`; raises `DataError`. Its randomness is a function of epoch and position."""


def default_workers() -> int:
    """Half of the cores that this process may use, at most 16; the others compute."""
    # On a cluster, the affinity may be 8 of the machine's 128 cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // (2 * local_processes())))


def local_processes() -> int:
    """Processes of this run on this machine according to torchrun; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def in_parts(positions: npt.NDArray[np.int64], part_size: int) -> list[npt.NDArray[np.int64]]:
    """`positions` split into parts of `part_size` for `Loader.batches`; the last one may be smaller."""
    return [positions[start : start + part_size] for start in range(0, len(positions), part_size)]


@dataclass(eq=False)
class Loader:
    """Batches of the images of a split, independent of the number of threads."""

    images: Images
    read: Reader
    seed: int  # for the order of a stream
    num_workers: int  # threads that decode; 0 means 1
    pin_memory: bool  # put batches into pinned memory for copies to a GPU, if there is one
    bad_images: Literal["fail", "skip"]
    """`fail` at the first batch with a bad image, or `skip` them: zeros, with the label -100."""
    bad: dict[str, str] = field(default_factory=dict)  # the bad images so far, in order: name and reason
    is_hashing: bool = False  # whether the digests of the images read are added to `content`
    content: int = 0  # the sum modulo 2^64 of the images' digests, which does not depend on their order
    _bad_in_a_row: int = 0

    def batches(self, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order: uint8 (images, channels, height, width) and int64 labels (images,).

        `parts` are the positions of each batch's images, ascending throughout for a stream. `epoch` decides the order
        of a stream and the reader's random draws. The threads end with this iterator.

        Raises:
            DataError: images are bad and `bad_images` is `fail`; or more than 100 in a row are bad.
            LoadingError: an image could not be read for another reason, or a stream or a disk hangs.
        """
        num_threads = min(max(1, self.num_workers), sum(map(len, parts)))
        threads = _Threads(self, num_threads, epoch)
        started = deque[_Batch]()
        try:
            for number in range(len(parts)):
                while len(started) <= num_threads * BATCHES_AHEAD and number + len(started) < len(parts):
                    started.append(threads.submit(parts[number + len(started)].tolist()))
                batch = started.popleft()
                threads.wait_for(batch)
                self.content = (self.content + batch.content) % 2**64
                self._record_bad([batch.bad[row] for row in sorted(batch.bad)], len(batch.labels), epoch)
                yield torch.from_numpy(batch.pixels), torch.from_numpy(batch.labels)
        finally:
            threads.close()

    def _record_bad(self, bad: list[tuple[str, str]], num_images: int, epoch: int) -> None:
        for name, reason in bad:
            self.bad.setdefault(name, reason)
        self._bad_in_a_row = self._bad_in_a_row + num_images if epoch and len(bad) == num_images else 0
        if self._bad_in_a_row > MAX_BAD_IN_A_ROW:
            raise DataError(
                f"expected images that can be read, got {self._bad_in_a_row} in a row that cannot, the last is "
                f"{': '.join(bad[-1])}, try whether the data is still there"
            )
        if bad and self.bad_images == "fail":
            named = "; ".join(f"{name}: {reason}" for name, reason in bad[:NAMED_BAD_IMAGES])
            more = f"; and {len(bad) - NAMED_BAD_IMAGES} more" if len(bad) > NAMED_BAD_IMAGES else ""
            raise DataError(
                f"expected images that can be read, got {len(bad)} in a batch of {num_images} that cannot: "
                f"{named}{more}, try --bad-images skip"
            )


class _Batch:
    """A batch whose images threads are reading."""

    def __init__(self, num_images: int, loader: Loader) -> None:
        shape = (num_images, *loader.read.shape)
        # NumPy arrays unless pinned: torch would start its own threads for each thread that copies.
        self.pixels: Pixels = np.empty(shape, np.uint8)
        self.labels: npt.NDArray[np.int64] = np.empty(num_images, np.int64)
        if loader.pin_memory and torch.cuda.is_available():
            self.pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        self.bad: dict[int, tuple[str, str]] = {}  # name of and reason for each bad image, by row
        self.error: LoadingError | None = None
        self.content = 0  # the sum of its images' digests
        self.missing = set(range(num_images))  # the rows that are not read yet
        self.changed = threading.Condition()


@dataclass(eq=False)
class _Task:
    """An image that a thread reads for a batch."""

    batch: _Batch
    row: int
    position: int
    name: str
    is_decoding: bool = False
    waited_seconds: float = 0.0
    """Counted in polls, not by the clock, which goes on while the process is suspended (Ctrl-Z)."""

    def settle(self, outcome: tuple[Pixels, int, int] | DataError | LoadingError) -> bool:
        """Record the outcome: pixels, label and digest, or an error. False if there is one already."""
        batch, row = self.batch, self.row
        with batch.changed:
            if row not in batch.missing:
                return False
            batch.missing.remove(row)
            batch.pixels[row], batch.labels[row] = 0, IGNORED_LABEL
            if isinstance(outcome, tuple):
                batch.pixels[row], batch.labels[row], digest = outcome
                batch.content += digest
            elif isinstance(outcome, DataError):
                batch.bad[row] = self.name, one_line(outcome).removeprefix(f"{self.name}: ")
            else:
                batch.error = outcome
            if not batch.missing:
                batch.changed.notify()
            return True


class _Threads:
    """The threads that read the batches of one epoch in the order of their submission."""

    def __init__(self, loader: Loader, num_threads: int, epoch: int) -> None:
        self._loader, self._epoch = loader, epoch
        self._sample_at = loader.images.reader(loader.seed, epoch)
        self._tasks, self._sequence_lock, self._is_closed = SimpleQueue[_Task | None](), threading.Lock(), False
        self._current_tasks: dict[int, _Task] = {}  # the task of each thread, by its identifier
        for _ in range(num_threads):
            self._start_thread()

    def submit(self, positions: list[int]) -> _Batch:
        """A batch of these positions, queued for the threads."""
        batch = _Batch(len(positions), self._loader)
        for row, position in enumerate(positions):
            self._tasks.put(_Task(batch, row, position, f"image {position}"))
        return batch

    def wait_for(self, batch: _Batch) -> None:
        """Wait until `batch` is complete. A thread over its time limit is abandoned, and its image counts as bad."""
        with batch.changed:
            while batch.missing:
                if not batch.changed.wait(POLL_SECONDS):
                    self._check_deadlines()
        if batch.error is not None:
            raise batch.error

    def close(self) -> None:
        """Let the threads end, each after its current image."""
        self._is_closed = True
        self._tasks.put(None)

    def _start_thread(self) -> None:
        # A daemon, so that a hanging thread does not block the end of the process.
        threading.Thread(target=self._work, name="vggkit reader", daemon=True).start()

    def _work(self) -> None:
        thread_id, is_stream = threading.get_ident(), self._loader.images.is_stream
        while True:
            with self._sequence_lock:
                task = self._tasks.get()
                if task is None or self._is_closed:
                    self._tasks.put(None)  # for the next thread
                    return
                self._current_tasks[thread_id] = task
                sample = self._attempt(task, self._sample_at, task.position) if is_stream else None
            task.waited_seconds, task.is_decoding = 0.0, True
            if sample is None:
                sample = self._attempt(task, self._sample_at, task.position)
            is_first = task.settle(
                self._attempt(task, self._read, task, sample) if isinstance(sample, Sample) else sample
            )
            self._current_tasks.pop(thread_id, None)
            if not is_first:  # it was abandoned, and another thread has replaced it
                return

    def _read(self, task: _Task, sample: Sample) -> tuple[Pixels, int, int]:
        task.name = sample.name
        digest = 0
        if self._loader.is_hashing:
            sample, digest = with_digest(sample)
        return self._loader.read(sample, self._epoch, task.position), sample.label, digest

    def _attempt(
        self, task: _Task, function: Callable[..., Value], *arguments: Any
    ) -> Value | DataError | LoadingError:
        try:
            return function(*arguments)
        except DataError as error:
            return error
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return LoadingError(
                f"expected {task.name} to be read, got {type(error).__name__}: {one_line(error)} "
                f"({Path(place.filename).name}:{place.lineno})"
            )

    def _check_deadlines(self) -> None:
        for thread, task in list(self._current_tasks.items()):
            task.waited_seconds += POLL_SECONDS
            if not task.is_decoding and task.waited_seconds > STREAM_SECONDS:
                raise LoadingError(
                    f"expected {task.name} of a stream to come, got nothing for {STREAM_SECONDS:g} seconds, "
                    "try whether it can be reached, and --resume"
                )
            if task.is_decoding and task.waited_seconds > READ_SECONDS:
                error = DataError(f"expected an image that can be read in {READ_SECONDS:g} seconds, got a slower one")
                if task.settle(error):
                    self._current_tasks.pop(thread, None)
                    self._start_thread()
