"""Batches that threads decode ahead: Pillow releases Python's lock while it decodes and resizes."""

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vggkit.data.samples import IGNORED_LABEL, Images, Sample, with_digest
from vggkit.errors import DataError, LoadingError, one_line

DECODE_SECONDS = 10.0
"""Processor time that one image may take: a bound that a busy machine does not change."""
READ_SECONDS = 60.0
"""How long the batch that is waited for may wait for one image, whose disk may hang."""
STREAM_SECONDS = 120.0
"""The same for the next image of a stream, which passes over others first."""
POLL_SECONDS = 0.5
"""How often an awaited thread is checked."""
MOST_BAD_IN_A_ROW = 100
"""More bad images in a row than these are not skipped in an epoch that shuffles: a disk or a folder is gone."""
NAMED_BAD_IMAGES = 3


_HAS_CLOCKS = hasattr(time, "pthread_getcpuclockid")

Value = TypeVar("Value")


class Reader(Protocol):
    """Makes pixels of a sample; called from several threads at the same time."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        ...

    def __call__(self, sample: Sample, epoch: int, position: int) -> npt.NDArray[np.uint8]:
        """uint8 of `shape`; raises `DataError`. What is random in it comes from the epoch and the position alone."""
        ...


def default_workers() -> int:
    """Half of the cores that this process may have, at most 16; what is left computes."""
    # A job on a cluster may have 8 of a machine's 128.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // (2 * local_processes())))


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun says; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def in_parts(positions: npt.NDArray[np.int64], part_size: int) -> list[npt.NDArray[np.int64]]:
    """`positions` in their order, in parts of `part_size` for `Loader.batches`; the last one may be smaller."""
    return [positions[start : start + part_size] for start in range(0, len(positions), part_size)]


class Loader:
    """Batches of the images of a split, as `read` makes them; how many threads there are changes nothing in them."""

    bad: dict[str, str]
    """The bad images met so far, in order: name and reason."""
    is_hashing: bool = False
    """Whether the digests of the images that are read are added to `content`."""
    content: int = 0
    """The sum modulo 2^64 of the digests of images that were read, in whatever order."""

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
            read: makes pixels of a sample.
            seed: of the order of a stream.
            num_workers: threads that decode; one at least.
            pin_memory: put batches into pinned memory, for copies to a GPU; without a GPU nothing is pinned.
            bad_images: `fail` at the first batch with a bad image, or `skip` them: zeros, with the label -100.
            ahead: batches that each thread decodes ahead.
        """
        self.images, self.read, self.seed = images, read, seed
        self.num_workers, self.ahead = max(1, num_workers), ahead
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.bad, self._bad_images, self._bad_in_a_row = {}, bad_images, 0

    def batches(self, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read batches, in order; the threads end with this iterator.

        Args:
            parts: for each batch, the positions of its images in the split; ascending throughout for a stream.
            epoch: goes to the order of a stream and to the reader.

        Yields:
            uint8 (images, channels, height, width) and int64 labels (images,).

        Raises:
            DataError: images are bad and `bad_images` is `fail`; or more than 100 in a row are bad.
            LoadingError: an image could not be read for another reason, or a stream or a disk hangs.
        """
        if not any(map(len, parts)):
            return
        reading = _Reading(self, parts, epoch)
        try:
            for _ in parts:
                batch = reading.next_batch()
                self.content = (self.content + batch.content) % 2**64
                self._note([batch.bad[row] for row in sorted(batch.bad)], len(batch.positions), epoch)
                yield torch.from_numpy(batch.pixels), torch.from_numpy(batch.labels)
        finally:
            reading.close()

    def _note(self, bad: list[tuple[str, str]], num_images: int, epoch: int) -> None:
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


class _Batch:
    """A batch in the making."""

    def __init__(self, positions: list[int], loader: Loader) -> None:
        self.positions = positions
        shape = (len(positions), *loader.read.shape)
        # NumPy's, but for a GPU: torch would start threads of its own for each thread that copies.
        self.pixels: npt.NDArray[np.uint8] = np.empty(shape, np.uint8)
        self.labels: npt.NDArray[np.int64] = np.empty(len(positions), np.int64)
        if loader.pin_memory:
            self.pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        self.bad: dict[int, tuple[str, str]] = {}
        """The name of a bad image and what is wrong with it, by the row."""
        self.error: LoadingError | None = None
        self.content = 0
        """The sum of its images' digests."""
        self.is_whole = threading.Event()
        self._num_missing, self._lock = len(positions), threading.Lock()
        if not positions:
            self.is_whole.set()

    def put(self, row: int, pixels: npt.NDArray[np.uint8] | int, label: int, digest: int = 0) -> None:
        """Fill a row."""
        self.pixels[row] = pixels
        self.labels[row] = label
        with self._lock:
            self.content += digest
            self._num_missing -= 1
            if not self._num_missing:
                self.is_whole.set()


class _Task:
    """An image that a thread reads for a batch, made by that thread."""

    def __init__(self, batch: _Batch, row: int) -> None:
        self.position = batch.positions[row]
        self.name = f"image {self.position}"
        self.is_decoding = False
        self.waited_seconds = 0.0
        """Counted in polls, not measured, so that nothing hangs while the whole process is stopped, by Ctrl-Z say."""
        self._batch, self._row = batch, row
        self._clock = time.pthread_getcpuclockid(threading.get_ident()) if _HAS_CLOCKS else None
        self._started = 0.0
        self._is_open = threading.Lock()

    def begin_decoding(self) -> None:
        """From now on `is_too_slow` counts."""
        self._started = time.clock_gettime(self._clock) if self._clock is not None else 0.0
        self.waited_seconds, self.is_decoding = 0.0, True

    def is_too_slow(self) -> bool:
        """Whether the thread, which is still at it, has taken more time than an image may take."""
        try:
            computed = time.clock_gettime(self._clock) - self._started if self._clock is not None else 0.0
        except OSError:  # it has just ended
            return False
        return computed > DECODE_SECONDS or self.waited_seconds > READ_SECONDS

    def settle(self, outcome: tuple[npt.NDArray[np.uint8], int, int] | DataError | LoadingError) -> bool:
        """Say what became of the image: pixels, label and digest, or an error. False if that was said before."""
        if not self._is_open.acquire(blocking=False):
            return False
        if isinstance(outcome, tuple):
            self._batch.put(self._row, *outcome)
            return True
        if isinstance(outcome, DataError):
            self._batch.bad[self._row] = self.name, one_line(outcome).removeprefix(f"{self.name}: ")
        else:
            self._batch.error = outcome
        self._batch.put(self._row, 0, IGNORED_LABEL)
        return True


class _Reading:
    """One pass over batches, and the threads that make it."""

    def __init__(self, loader: Loader, parts: Sequence[npt.NDArray[np.int64]], epoch: int) -> None:
        self._loader, self._epoch = loader, epoch
        self._sample_at = loader.images.reader(loader.seed, epoch)
        self._batches = SimpleQueue[_Batch]()
        self._room = threading.Semaphore(loader.num_workers * loader.ahead + 1)
        self._is_closed = False
        self._turn, self._tasks = threading.Lock(), self._dealt(parts)
        self._at: dict[threading.Thread, _Task] = {}
        for _ in range(min(loader.num_workers, sum(map(len, parts)))):
            self._start_thread()

    def next_batch(self) -> _Batch:
        """The next batch, whole. A thread that is too slow meanwhile is left to itself, and its image is bad."""
        batch = None
        while batch is None or not batch.is_whole.is_set():
            try:
                batch = batch or self._batches.get(timeout=POLL_SECONDS)
            except Empty:
                self._check_threads()
            else:
                if not batch.is_whole.wait(POLL_SECONDS):
                    self._check_threads()
        if batch.error is not None:
            raise batch.error
        self._room.release()
        return batch

    def close(self) -> None:
        """Let the threads end, each after the image that it is at."""
        self._is_closed = True
        self._room.release()

    def _start_thread(self) -> None:
        # A daemon, so that one which hangs does not hold up the end of the process.
        threading.Thread(target=self._work, name="vggkit reader", daemon=True).start()

    def _dealt(self, parts: Sequence[npt.NDArray[np.int64]]) -> Iterator[_Task]:
        """The tasks in order, each made in the thread that asks for it; a batch waits until there is room for it."""
        for positions in parts:
            self._room.acquire()
            if self._is_closed:
                return
            batch = _Batch(positions.tolist(), self._loader)
            self._batches.put(batch)
            for row in range(len(positions)):
                yield _Task(batch, row)

    def _work(self) -> None:
        me, is_stream = threading.current_thread(), self._loader.images.is_stream
        while True:
            with self._turn:
                task = None if self._is_closed else next(self._tasks, None)
                if task is None:
                    return
                self._at[me] = task
                sample = self._attempt(task, self._sample_at, task.position) if is_stream else None
            task.begin_decoding()
            if sample is None:
                sample = self._attempt(task, self._sample_at, task.position)
            is_first = task.settle(
                self._attempt(task, self._read, task, sample) if isinstance(sample, Sample) else sample
            )
            self._at.pop(me, None)
            if not is_first:  # another thread has taken its place
                return

    def _read(self, task: _Task, sample: Sample) -> tuple[npt.NDArray[np.uint8], int, int]:
        task.name = sample.name
        digest = 0
        if self._loader.is_hashing:
            sample, digest = with_digest(sample)
        pixels, expected = self._loader.read(sample, self._epoch, task.position), self._loader.read.shape
        if pixels.dtype != np.uint8 or pixels.shape != expected:
            raise TypeError(f"expected uint8 {expected}, got {pixels.dtype} {pixels.shape}")
        return pixels, sample.label, digest

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

    def _check_threads(self) -> None:
        for thread, task in list(self._at.items()):
            task.waited_seconds += POLL_SECONDS
            if not task.is_decoding and task.waited_seconds > STREAM_SECONDS:
                raise LoadingError(
                    f"expected {task.name} of a stream to come, got nothing for {STREAM_SECONDS:g} seconds, "
                    "try whether it can be reached, and --resume"
                )
            if task.is_decoding and task.is_too_slow():
                limit = f"{DECODE_SECONDS:g} seconds of computing or {READ_SECONDS:g} of waiting"
                if task.settle(DataError(f"expected an image that can be read in {limit}, got one that takes longer")):
                    self._at.pop(thread, None)
                    self._start_thread()
