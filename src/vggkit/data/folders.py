"""Image files in a folder for each class. A million names are kept as one piece of bytes, not as a million objects."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vggkit.data.samples import MAX_CLASSES, MAX_NAMED_FILES, HeldOut, ImageSource, Sample, kept_out, printable
from vggkit.errors import DataError

IMAGE_SUFFIXES = tuple(b".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff".split())
"""Of PNG, JPEG, WebP, GIF, BMP and TIFF, in small letters."""

TRAIN = b"train"
HELD_OUT: tuple[tuple[bytes, HeldOut], ...] = (
    (b"val", "validation"), (b"valid", "validation"), (b"validation", "validation"), (b"test", "test"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files, class after class, by name within a class: 2 + 8 bytes and its name's for each."""

    place: bytes
    """The absolute folder that holds the class folders."""
    prefix: bytes
    """What stands before a class folder in a name that is shown: `train/`, or nothing."""
    class_folders: tuple[bytes, ...]
    """In the order of the classes."""
    labels: npt.NDArray[np.uint16]
    """(images,)."""
    file_names: bytes
    """Of all images, one behind another."""
    ends: npt.NDArray[np.int64]
    """(images,): where each name ends in them."""
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`; nothing is opened here, a file may be gone when it is read."""

        def read(position: int) -> Sample:
            label = int(self.labels[position])
            start = int(self.ends[position - 1]) if position else 0
            path = b"/".join((self.class_folders[label], self.file_names[start : int(self.ends[position])]))
            return Sample(printable(self.prefix + path), label, Path(os.fsdecode(self.place + b"/" + path)))

        return read

    def subset(self, chosen: npt.NDArray[np.bool_]) -> "FolderImages":
        """The images of which `chosen`, (images,), says so."""
        starts = np.concatenate(([0], self.ends[:-1]))
        names = b"".join(self.file_names[a:b] for a, b in zip(starts[chosen].tolist(), self.ends[chosen].tolist(),
                                                              strict=True))  # fmt: skip
        ends = np.cumsum((self.ends - starts)[chosen])
        return replace(self, labels=self.labels[chosen], file_names=names, ends=ends)


class _Found(NamedTuple):
    """What a folder holds, hidden names left out."""

    folders: list[bytes]
    """Names, sorted."""
    images: list[tuple[bytes, int]]
    """Names and bytes of the files that are images by their names, sorted."""
    others: list[bytes]
    """Names of all other files, sorted."""


def open_folder(folder: Path, holdout: float, seed: int) -> ImageSource:
    """The images in `train/<class>/` and `val/<class>/`, or in `<class>/`.

    Args:
        folder: the held-out images are those in its `val`, `valid` or `validation`, else those in its `test`.
        holdout: without any of these, the share of each class that is kept out, above 0 and below 1.
        seed: of the choice; it and the sorted names decide it alone.

    Raises:
        DataError: it cannot be listed, a class is empty or unknown, or it looks like something else.
    """
    place = os.fsencode(folder.absolute())
    top = _look_into(place)
    held_out_folder = _held_out_folder(place, top)
    in_train = _look_into(place + b"/" + TRAIN) if TRAIN in top.folders else None
    digest, others = hashlib.sha256(), list[bytes]()
    if in_train and (held_out_folder or in_train.folders or top.folders == [TRAIN]):
        expected = {TRAIN, *(name for name, _ in HELD_OUT)}
        others += _strays(top) + [name + b"/" for name in top.folders if name not in expected]
        everything = _read_split(place, b"train/", None, digest, others)
    else:  # a class may be called train
        held_out_folder, everything = None, _read_split(place, b"", None, digest, others)
    classes = everything.class_folders
    held_out_name: HeldOut = "validation"
    if held_out_folder:
        name, held_out_name = held_out_folder
        train, held_out = everything, _read_split(place, name + b"/", classes, digest, others)
    else:
        chosen = kept_out(everything.labels, holdout, seed)
        train, held_out = everything.subset(~chosen), everything.subset(chosen)
    return ImageSource(
        printable(os.fsencode(folder.name) or place), tuple(map(printable, classes)), train, held_out, held_out_name,
        digest.hexdigest(), tuple(map(printable, others[:MAX_NAMED_FILES])), len(others),
        is_drawn=held_out_folder is None,
    )  # fmt: skip


def _held_out_folder(place: bytes, top: _Found) -> tuple[bytes, HeldOut] | None:
    found = [(name, role) for name, role in HELD_OUT if name in top.folders]
    validation = [name.decode() for name, role in found if role == "validation"]
    if len(validation) > 1 and TRAIN in top.folders:
        raise DataError(f"{printable(place)}: expected one folder for validation, got {' and '.join(validation)}")
    return found[0] if found else None


def _strays(found: _Found) -> list[bytes]:
    """The files that lie where only folders are looked for."""
    return [*(name for name, _ in found.images), *found.others]


def _class_folders(place: bytes, found: _Found) -> list[bytes]:
    if not found.folders:
        got = f"{len(found.images)} images and {len(found.others)} other files" if found.images or found.others else (
            "an empty folder"
        )  # fmt: skip
        raise DataError(
            f"{printable(place)}: expected a folder for each class with its images in it, got {got}, "
            "try <folder>/<class>/image.jpg"
        )
    if len(found.folders) > MAX_CLASSES:
        raise DataError(f"{printable(place)}: expected at most {MAX_CLASSES:,} classes, got {len(found.folders):,}")
    return found.folders


def _read_split(
    place: bytes, prefix: bytes, classes: tuple[bytes, ...] | None, digest: "hashlib._Hash", others: list[bytes]
) -> FolderImages:
    """List the class folders of a split, tell `digest` of what they hold, and `others` of what is not taken."""
    place = place + b"/" + prefix.rstrip(b"/") if prefix else place
    found = _look_into(place)
    others += [prefix + name for name in _strays(found)]
    present = _class_folders(place, found)
    classes = classes or tuple(present)
    index = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in present if name not in index]:
        raise DataError(
            f"{printable(place + b'/' + unknown[0])}: expected a class that the training images have, got another one, "
            f"try to rename or remove it ({len(unknown)} such)"
        )
    names, lengths, counts = bytearray(), [np.zeros(0, np.int64)], np.zeros(len(classes), np.int64)
    for class_folder in present:
        found = _look_into(place + b"/" + class_folder)
        where = prefix + class_folder
        others += [where + b"/" + other for other in found.others + [folder + b"/" for folder in found.folders]]
        if not found.images:
            raise DataError(
                f"{printable(place + b'/' + class_folder)}: expected image files in the folder of a class, got none, "
                f"{len(found.folders)} folders and {len(found.others)} other files, try to fill or remove it"
            )
        counts[index[class_folder]] = len(found.images)
        lengths.append(np.fromiter((len(name) for name, _ in found.images), np.int64, len(found.images)))
        names += b"".join(name for name, _ in found.images)
        digest.update(b"%b\0%d\0" % (where, len(found.images)))
        digest.update(b"".join(b"%b\0%d\0" % image for image in found.images))
    labels = np.repeat(np.arange(len(classes)), counts).astype(np.uint16)
    return FolderImages(place, prefix, classes, labels, bytes(names), np.cumsum(np.concatenate(lengths)))


def _look_into(folder: bytes) -> _Found:
    try:
        found = _Found([], [], [])
        with os.scandir(folder) as entries:
            for entry in entries:
                _sort_in(found, entry)
    except OSError as error:
        raise DataError(f"{printable(error.filename or folder)}: expected to read it, got: {error.strerror}") from None
    for names in found:
        names.sort()
    return found


def _sort_in(found: _Found, entry: "os.DirEntry[bytes]") -> None:
    if entry.name.startswith(b"."):
        return
    if entry.is_dir():
        found.folders.append(entry.name)
    elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
        found.others.append(entry.name)
    else:
        status = entry.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{printable(entry.path)}: expected an image file, got no regular file")
        found.images.append((entry.name, status.st_size))
