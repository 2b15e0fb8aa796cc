"""Labelled images that are not decoded yet: the one kind of data that training, evaluation and the doctor take."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from vggkit.data.files import read_image_file
from vggkit.errors import DataError

MAX_CLASSES = 2**16
MAX_NAMED_FILES = 1_000

IGNORED_LABEL = -100
"""The label of an image that was skipped: torch's `ignore_index`."""

HeldOut = Literal["validation", "test", "all"]

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words that name a split, as the library `datasets` knows them; case does not matter."""


@dataclass(frozen=True)
class Sample:
    """One image of a split, and its class."""

    name: str
    """The image's name for messages, in one printable line: a relative path, shard/key, or row 17 of a file."""
    label: int
    """An index into the classes."""
    content: Path | bytes | Image.Image
    """The encoded image, or the file that holds it, which nobody has looked into yet; or its pixels."""


def with_digest(sample: Sample) -> tuple[Sample, int]:
    """`sample` with its content in memory, and 64 bits that say by SHA-256 what its name, label and content are."""
    content = sample.content
    if isinstance(content, Path):
        content = read_image_file(content, sample.name)
    told = content if isinstance(content, bytes) else content.tobytes()
    digest = hashlib.sha256(f"{sample.name}\0{sample.label}\0".encode(errors="replace"))
    digest.update(told)
    return replace(sample, content=content), int.from_bytes(digest.digest()[:8])


class Images(Protocol):
    """The images of one split. Nothing is opened before `reader` is called."""

    @property
    def is_stream(self) -> bool:
        """Whether the images can only be read one after another."""
        ...

    def __len__(self) -> int: ...

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """The function from positions, 0 to len - 1, to samples; it raises `DataError` for what cannot be read.

        Without a stream it takes the positions in any order, from any thread, and ignores `seed` and `epoch`. A stream
        is shuffled by `seed` and `epoch` (not at all in epoch 0) and takes ascending positions only; the images
        between them are passed over.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Grey images of one size that are in memory already, as Fashion-MNIST's are."""

    pixels: npt.NDArray[np.uint8]
    """(images, height, width)."""
    labels: npt.NDArray[np.uint8]
    """(images,)."""
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: slice) -> "ArrayImages":
        return ArrayImages(self.pixels[chosen], self.labels[chosen])

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`."""

        def read(position: int) -> Sample:
            return Sample(f"image {position}", int(self.labels[position]), Image.fromarray(self.pixels[position]))

        return read


@dataclass(frozen=True)
class ImageSource:
    """Labelled images in one split or several: what `open_data` gives."""

    name: str
    """A name for people, in one printable line."""
    classes: tuple[str, ...]
    splits: Mapping[str, Images]
    """Every split there is, by its name: `train`, `validation`, `test`; or only `all`, where nothing is divided."""
    fingerprint: str
    """SHA-256, in hex, of what identifies the data without decoding an image; neither seed nor place are in it."""
    other_files: tuple[str, ...] = ()
    """Names of files and folders that were not taken, in printable lines; 1,000 of them at most."""
    num_other_files: int = 0
    """All of them."""
    remarks: tuple[str, ...] = ()
    """Lines for the user on what else was found and not taken."""
    is_drawn: bool = False
    """Whether a holdout and a seed decided which images are for validation."""
    stamp: str = ""
    """SHA-256, in hex, of the files' sizes and times: while it is the same, so is the content."""

    @property
    def train(self) -> Images:
        """The training images."""
        return self.splits["train" if "train" in self.splits else "all"]

    @property
    def held_out_name(self) -> HeldOut:
        """What to measure by: `validation`, else `test`, else `all`; `validation` may have been drawn from `train`."""
        names: tuple[HeldOut, ...] = ("validation", "test", "all")
        return next(name for name in names if name in self.splits)

    @property
    def held_out(self) -> Images:
        """The images to measure by."""
        return self.splits[self.held_out_name]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: what was not taken, if anything."""
        if not self.num_other_files:
            return self.remarks
        named = ", ".join(self.other_files[:3]) + (", ..." if self.num_other_files > 3 else "")
        return (f"not taken for images, by their names or places: {self.num_other_files:,} ({named})", *self.remarks)

    @property
    def channels(self) -> int:
        """The data's own channels: 1 for grey arrays, 3 for image files."""
        return 1 if isinstance(self.train, ArrayImages) else 3

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(images):,} {name}" for name, images in self.splits.items())
        return f"{self.name}: {counts} images of {len(self.classes):,} classes"


def split_named(word: str | bytes) -> str | None:
    """The split that a folder's name says, in any case: `train`, `validation` or `test`."""
    text = os.fsdecode(word).lower()
    return next((split for split, words in SPLIT_WORDS.items() if text in words), None)


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


@dataclass(frozen=True, eq=False)
class Names:
    """Names as one piece of bytes: a million of them take no more than their letters and 8 bytes each."""

    text: bytes
    ends: npt.NDArray[np.int64]
    """(names,): where each name ends in `text`."""

    @classmethod
    def of(cls, names: list[bytes]) -> "Names":
        """Pack `names`."""
        return cls(b"".join(names), np.cumsum(np.fromiter(map(len, names), np.int64, len(names))))

    def __getitem__(self, index: int) -> bytes:
        return self.text[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]

    def subset(self, chosen: npt.NDArray[np.bool_]) -> "Names":
        """The names of which `chosen`, (names,), says so."""
        return Names.of([self[index] for index in np.flatnonzero(chosen).tolist()])
