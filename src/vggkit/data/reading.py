"""Images to batches in memory that processes share: what a worker does."""

import ctypes
import math
import mmap
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vggkit.data.samples import Images, Sample
from vggkit.errors import DataError, LoadingError, one_line

IGNORED_LABEL = -100
"""The label of an image that was skipped: torch's `ignore_index`."""

Reader = Callable[[Sample, int, int], Tensor]
"""(sample, epoch, position) to uint8 (channels, size, size), all of one shape. It goes to other processes, and what is
random in it comes from the epoch, the position and a seed of its own alone."""

Bad = list[tuple[str, str]]
"""Images that could not be read: names and reasons."""


class Status(ctypes.Structure):
    """What a worker is at; it lies in shared memory."""

    finished: int
    """Images, since it started."""
    reading: bytes
    """The name of an image, cut to what there is room for."""
    _fields_: ClassVar = [("finished", ctypes.c_int64), ("reading", ctypes.c_char * 256)]


class Task(NamedTuple):
    """A batch to be read."""

    run: int
    """The call of `Loader.batches` that it belongs to: a stream is read anew in each."""
    epoch: int
    slot: int
    """Where in the shared memory it goes."""
    positions: npt.NDArray[np.int64]


class Slots(NamedTuple):
    """Room for batches, in memory that processes share."""

    pixels: Tensor
    """uint8 (slots, images, channels, height, width)."""
    labels: Tensor
    """int64 (slots, images)."""

    @classmethod
    def shared(cls, slots: int, images: int, shape: tuple[int, ...]) -> "Slots":
        """Room of no file's, so that the size of /dev/shm, 64 MB in many containers, does not matter."""
        num_bytes = slots * images * math.prod(shape)
        try:
            pixels = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
            labels = torch.frombuffer(mmap.mmap(-1, slots * images * 8), dtype=torch.int64)
        except (OSError, OverflowError, ValueError) as error:
            raise LoadingError(
                f"expected memory for {slots} batches of {num_bytes // slots:,} bytes, got {one_line(error)}, "
                "try fewer --workers"
            ) from error
        return cls(pixels.view(slots, images, *shape), labels.view(slots, images))


def read_one(
    sample_at: Callable[[int], Sample], read: Reader, epoch: int, position: int, status: Status
) -> tuple[str, int, Tensor | str]:
    """The name of an image, its label, and its pixels or why it is bad.

    Raises:
        LoadingError: reading it came to any other error than `DataError`.
    """
    name = f"image {position}"
    try:
        status.reading = name.encode()
        sample = sample_at(position)
        name = sample.name
        status.reading = name.encode(errors="replace")[:255]
        image = read(sample, epoch, position)
    except DataError as error:
        return name, IGNORED_LABEL, one_line(error).removeprefix(f"{name}: ")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise LoadingError(
            f"expected {name} to be read, got {type(error).__name__}: {one_line(error)} "
            f"({Path(place.filename).name}:{place.lineno})"
        ) from error
    return name, sample.label, image


class Reading(Dataset[Bad | str]):
    """What a worker has of a loader."""

    def __init__(self, images: Images, read: Reader, seed: int, slots: Slots, statuses: Sequence[Status]) -> None:
        self.images, self.read, self.seed = images, read, seed
        self.slots, self.statuses = slots, statuses
        self._opened: tuple[int, Callable[[int], Sample]] | None = None
        """The run, and the reader of the images in it."""

    def __getitem__(self, task: Task) -> Bad | str:
        """`batch` in a worker; an error as its message, where DataLoader would send a traceback of many lines."""
        worker = get_worker_info()
        try:
            return self.batch(task, worker.id if worker else 0)
        except LoadingError as error:
            return str(error)

    def batch(self, task: Task, worker: int = 0) -> Bad:
        """Read the images of a task into their slot; what is bad becomes zeros, and is returned."""
        status = self.statuses[worker]
        pixels, labels = self.slots.pixels[task.slot], self.slots.labels[task.slot]
        bad: Bad = []
        read_labels: list[int] = []
        for row, position in enumerate(task.positions.tolist()):
            name, label, image = read_one(partial(self._sample, task), self.read, task.epoch, position, status)
            if isinstance(image, str):
                bad.append((name, image))
                pixels[row] = 0
            elif (image.dtype, image.shape) == (torch.uint8, pixels.shape[1:]):
                pixels[row] = image
            else:
                raise LoadingError(
                    f"expected all images as uint8 of {tuple(pixels.shape[1:])}, "
                    f"got {image.dtype} of {tuple(image.shape)} for {name}"
                )
            read_labels.append(label)
            status.finished += 1
        labels[: len(read_labels)] = torch.tensor(read_labels, dtype=torch.int64)
        status.reading = b""
        return bad

    def _sample(self, task: Task, position: int) -> Sample:
        if self._opened is None or self._opened[0] != task.run:
            self._opened = task.run, self.images.reader(self.seed, task.epoch)
        return self._opened[1](position)
