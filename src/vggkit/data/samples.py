"""Labelled images that are not decoded yet: the form of data that training, evaluation and the doctor take."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from vggkit.data.files import read_image_file
from vggkit.errors import DataError

MAX_CLASSES = 2**16

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of image files, in lower case."""

IGNORED_LABEL = -100  # the label of an image that was skipped: torch's `ignore_index`

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words that name a split in any case, as in the library `datasets`."""


@dataclass(frozen=True)
class Sample:
    """One image of a split, and its class."""

    name: str
    """The image's name for messages, printable: a relative path, shard/key, or row 17 of a file."""
    label: int
    """An index into the classes."""
    content: Path | bytes | Image.Image
    """The encoded image, the path of its unverified file, or its pixels."""


def with_digest(sample: Sample) -> tuple[Sample, int]:
    """`sample` with its content read, and the first 64 bits of the SHA-256 of its name, label and content."""
    content = sample.content
    if isinstance(content, Path):
        content = read_image_file(content, sample.name)
    digest = hashlib.sha256(f"{sample.name}\0{sample.label}\0".encode(errors="replace"))
    digest.update(content if isinstance(content, bytes) else content.tobytes())
    return replace(sample, content=content), int.from_bytes(digest.digest()[:8])


class Images(Protocol):
    """The images of one split. Nothing is opened before `reader` is called."""

    @property
    def is_stream(self) -> bool:
        """Whether the images can only be read in sequence."""

    def __len__(self) -> int: ...

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """The function from positions, 0 to len - 1, to samples; it raises `DataError` for unreadable ones.

        Unless it is a stream, it takes positions in any order from any thread and ignores `seed` and `epoch`. A stream
        is shuffled by `seed` and `epoch` (not in epoch 0) and takes ascending positions, skipping those between.
        """


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Grey images of one size in memory, such as Fashion-MNIST's."""

    pixels: npt.NDArray[np.uint8]  # (images, height, width)
    labels: npt.NDArray[np.uint8]  # (images,)
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


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Encoded images with random access: files, or parts of files."""

    open: Callable[[], Callable[[int], tuple[str, Path | bytes]]]
    """Returns the function from an image's number to its name and content, which raises `DataError`."""
    labels: npt.NDArray[np.uint16]  # (images,)
    numbers: npt.NDArray[np.int64]  # (images,): the numbers of these images for the function that `open` returns
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`."""
        read = self.open()

        def sample(position: int) -> Sample:
            name, content = read(int(self.numbers[position]))
            return Sample(name, int(self.labels[position]), content)

        return sample

    def subset(self, chosen: npt.NDArray[np.bool_]) -> "StoredImages":
        """The images that the mask `chosen`, (images,), selects."""
        return replace(self, labels=self.labels[chosen], numbers=self.numbers[chosen])


@dataclass(frozen=True)
class ImageSource:
    """Labelled images in one or more splits, as `open_data` returns them."""

    name: str
    """A printable name for messages."""
    classes: tuple[str, ...]
    splits: Mapping[str, Images]
    """The splits by name: `train`, `validation`, `test`; or only `all`, if the data is not divided."""
    fingerprint: str
    """SHA-256, in hex, of what identifies the data without decoding an image; independent of seed and location."""
    other_files: tuple[str, ...] = ()
    """Printable names of ignored files and folders."""
    remarks: tuple[str, ...] = ()
    """Further lines for the user on what was ignored."""
    stamp: str = ""
    """SHA-256, in hex, of the files' sizes and modification times; a change may mean other content."""

    @property
    def train(self) -> Images:
        """The training images."""
        return self.splits["train" if "train" in self.splits else "all"]

    @property
    def held_out_name(self) -> str:
        """The split to evaluate on: `validation` (perhaps drawn from `train`), else `test`, else `all`."""
        return next(name for name in ("validation", "test", "all") if name in self.splits)

    @property
    def held_out(self) -> Images:
        """The images to evaluate on."""
        return self.splits[self.held_out_name]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user on what was ignored."""
        if not self.other_files:
            return self.remarks
        named = first_three(self.other_files)
        return (f"not taken for images, by their names or places: {len(self.other_files):,} ({named})", *self.remarks)

    @property
    def channels(self) -> int:
        """Channels of the data: 1 for grey arrays, 3 for image files."""
        return 1 if isinstance(self.train, ArrayImages) else 3

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(images):,} {name}" for name, images in self.splits.items())
        return f"{self.name}: {counts} images of {len(self.classes):,} classes"


@dataclass
class SourceBuilder:
    """Collects, while a source is opened, what is ignored and what identifies its files."""

    other_files: list[str] = field(default_factory=list)  # see `ImageSource.other_files`
    num_nested: int = 0  # images in folders below the folder of a class
    unused_images: list[str] = field(default_factory=list)  # images beside the one of their sample
    remarks: list[str] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    stamp: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add_files(self, folder: str, files: list[tuple[str, int, int]]) -> None:
        """Add the files of a folder, each as its name, bytes and modification time, to digest and stamp."""
        sizes = [f"{folder}\0{len(files)}\0", *(f"{name}\0{size}\0" for name, size, _ in files)]
        self.digest.update("".join(sizes).encode(errors="surrogateescape"))
        times = "".join(f"{name}\0{size}\0{time}\0" for name, size, time in files)
        self.stamp.update(times.encode(errors="surrogateescape"))

    def build(self, name: str, classes: tuple[str, ...], splits: Mapping[str, Images]) -> ImageSource:
        """The source with what was collected."""
        remarks = list(self.remarks)
        if self.num_nested:
            what = "1 image lies" if self.num_nested == 1 else f"{self.num_nested:,} images lie"
            remarks.append(
                f"{what} deeper than <class>/ and count nowhere, try to move them up into the folder of their class"
            )
        if self.unused_images:
            what = "1 image beside the one of its sample is"
            if len(self.unused_images) > 1:
                what = f"{len(self.unused_images):,} images beside the one of their sample are"
            remarks.append(f"{what} not used ({first_three(self.unused_images)})")
        digest, stamp = self.digest.hexdigest(), self.stamp.hexdigest()
        return ImageSource(name, classes, splits, digest, tuple(self.other_files), tuple(remarks), stamp)


def first_three(names: Sequence[str]) -> str:
    """The first three of `names`, for a message."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def split_named(word: str) -> str | None:
    """The split that `word` names: `train`, `validation`, `test` or None."""
    return next((split for split, words in SPLIT_WORDS.items() if word.lower() in words), None)


def holdout_mask(labels: npt.NDArray[np.uint16], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """A mask, (images,), of the images to keep out of training: `share` of each class, drawn from the seed.

    At least one image of every class stays for training, and at least one of a class of two or more is kept out.
    Raises `DataError` unless `share` is above 0 and below 1.
    """
    if not 0 < share < 1:
        raise DataError(f"expected a share to hold out above 0 and below 1, got {share}, try 0.1")
    chosen = np.zeros(len(labels), np.bool_)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    for label, of_class in enumerate(by_class):
        count = min(len(of_class) - 1, max(1, round(len(of_class) * share)))
        if count > 0:
            # Not default_rng: only RandomState's numbers are stable for ever (NEP 19); a resumed run needs them.
            chosen[np.random.RandomState([seed, label]).permutation(of_class)[:count]] = True
    return chosen
