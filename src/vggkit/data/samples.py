"""Labelled images that are not opened yet: what folders, tables and streams of them have in common."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from vggkit.errors import DataError

MAX_CLASSES = 2**16
MAX_NAMED_FILES = 1_000

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True)
class Sample:
    """One image of a split, and its class."""

    name: str
    """Of the image, for messages, in one printable line: a relative path, shard/key, or row 17 of train."""
    label: int
    """An index into the classes."""
    content: Path | bytes
    """The encoded image, or the file that holds it; nobody has looked into it yet."""


class Images(Protocol):
    """The images of one split. It can be pickled and forked, and opens nothing before `reader`."""

    @property
    def is_stream(self) -> bool:
        """Whether the images can only be had one after another."""

    def __len__(self) -> int: ...

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """The function from positions, 0 to len - 1, to samples; it raises `DataError` for what cannot be had.

        Without a stream it takes the positions in any order and does not regard `seed` and `epoch`. Of a stream it
        gives the n-th image as `seed` and `epoch` shuffle it (epoch 0: not at all), for ascending positions only;
        what lies between them is passed over.
        """


@dataclass(frozen=True)
class ImageSource:
    """Images for training, and others to measure by."""

    name: str
    """For people, in one printable line."""
    classes: tuple[str, ...]
    train: Images
    held_out: Images
    held_out_name: HeldOut
    """`validation` also for what was kept out of the training images."""
    fingerprint: str
    """SHA-256, in hex, of what identifies the data without decoding an image; neither seed nor place are in it."""
    other_files: tuple[str, ...] = ()
    """Relative names of files and folders that were not taken, because they are no images by their names or lie
    where no image is looked for; 1,000 of them at most."""
    num_other_files: int = 0
    """All of them."""
    is_drawn: bool = False
    """Whether a holdout and a seed decided which images are held out."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: what was not taken, if anything."""
        if not self.num_other_files:
            return ()
        named = ", ".join(self.other_files[:3]) + (", ..." if self.num_other_files > 3 else "")
        return (f"not taken for images, by their names or places: {self.num_other_files:,} ({named})",)


def printable(name: str | bytes) -> str:
    """`name`, of a file or in one, as one line of valid text; what cannot be printed is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    if text.isprintable():
        return text
    escaped = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in escaped)


def kept_out(labels: npt.NDArray[np.uint16], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images, (images,), are kept out of training: `share` of each class, drawn from the seed.

    Of every class one image or more stays for training; of a class of two or more, one or more is kept out.

    Args:
        labels: (images,).
        share: above 0, below 1.
        seed: 0 to 2^32 - 1.

    Raises:
        DataError: another share.
    """
    if not 0 < share < 1:
        raise DataError(f"expected a share to hold out above 0 and below 1, got {share}, try 0.1")
    chosen = np.zeros(len(labels), np.bool_)
    by_class = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[by_class], np.arange(int(labels.max(initial=0)) + 2))
    for label, (first, end) in enumerate(zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)):
        count = min(end - first - 1, max(1, round((end - first) * share)))
        if count > 0:
            # Not default_rng: NumPy promises RandomState's numbers for ever (NEP 19), and a resumed run needs them.
            order = np.random.RandomState([seed, label]).permutation(end - first)
            chosen[by_class[first:end][order[:count]]] = True
    return chosen
