"""Image files in a folder for each class. A million names are kept as one piece of bytes, not as a million objects."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vggkit.data.samples import (
    MAX_CLASSES,
    MAX_NAMED_FILES,
    Images,
    ImageSource,
    Names,
    Sample,
    kept_out,
    split_named,
)
from vggkit.errors import DataError, shown

IMAGE_SUFFIXES = tuple(b".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff".split())
"""Of PNG, JPEG, WebP, GIF, BMP and TIFF, in small letters."""

NAME_CHARACTERS = 1_000
"""The length of the longest name of an image or a class."""

LAYOUTS = "try <folder>/<class>/image.jpg, or <folder>/train/<class>/image.jpg and <folder>/val/<class>/image.jpg"


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files, class after class, by name within a class."""

    place: bytes
    """The absolute folder that holds the class folders."""
    prefix: bytes
    """What stands before a class folder in a name that is shown: `train/`, or nothing."""
    class_folders: tuple[bytes, ...]
    """In the order of the classes."""
    labels: npt.NDArray[np.uint16]
    """(images,)."""
    file_names: Names
    is_stream: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def reader(self, seed: int, epoch: int) -> Callable[[int], Sample]:
        """See `Images`; nothing is opened here, and a file may be gone when it is read."""

        def read(position: int) -> Sample:
            label = int(self.labels[position])
            path = self.class_folders[label] + b"/" + self.file_names[position]
            return Sample(
                shown(self.prefix + path, NAME_CHARACTERS), label, Path(os.fsdecode(self.place + b"/" + path))
            )

        return read

    def subset(self, chosen: npt.NDArray[np.bool_]) -> "FolderImages":
        """The images of which `chosen`, (images,), says so."""
        return replace(self, labels=self.labels[chosen], file_names=self.file_names.subset(chosen))


@dataclass
class _Found:
    """What a folder holds, without hidden names; names are sorted."""

    folders: list[bytes] = field(default_factory=list)
    images: list[tuple[bytes, int, int]] = field(default_factory=list)
    """The name, bytes and time of change of each file that is an image by its name; 0 for what is no regular file."""
    others: list[bytes] = field(default_factory=list)


def open_folder(folder: Path, holdout: float, seed: int) -> ImageSource:
    """The images in `train/<class>/`, `val/<class>/` and `test/<class>/`, or in `<class>/`.

    Args:
        folder: the names of splits are those of `SPLIT_WORDS`, in any case. A single folder within it that holds
            folders alone is opened instead of it. A folder with runs of `vgg train` in it is never a class.
        holdout: if there is neither a validation nor a test folder, the share of each class that is kept out of
            training, below 1; with 0 the images are one split called `all`.
        seed: of the choice; it and the sorted names decide it alone.

    Raises:
        DataError: a folder cannot be listed, a class is empty or unknown, or the layout is another one.
    """
    place, top = _unwrapped(os.fsencode(folder.absolute()))
    listing = _Listing(place)
    folders = _split_folders(place, top, is_whole=not holdout)
    splits: dict[str, Images] = {}
    if not folders:
        everything = listing.read(b"", None)
        is_drawn = holdout > 0
    else:
        expected = set(folders.values())
        listing.others += [*_files(top), *(name + b"/" for name in top.folders if name not in expected)]
        everything = listing.read(folders.pop("train") + b"/", None)
        is_drawn = not folders and holdout > 0
    classes = everything.class_folders
    if is_drawn:
        chosen = kept_out(everything.labels, holdout, seed)
        splits = {"train": everything.subset(~chosen), "validation": everything.subset(chosen)}
    elif not folders:
        splits = {"all": everything}
    else:
        splits = {"train": everything}
        if "validation" in folders:
            splits["validation"] = listing.read(folders["validation"] + b"/", classes)
        if "test" in folders:
            test = listing.read_if_labelled(folders["test"] + b"/", classes, is_needed="validation" not in folders)
            splits |= {"test": test} if test else {}
    return ImageSource(
        shown(os.fsencode(folder.name) or place, 200),
        tuple(shown(name, NAME_CHARACTERS) for name in classes),
        splits,
        listing.digest.hexdigest(),
        tuple(shown(name, NAME_CHARACTERS) for name in listing.others[:MAX_NAMED_FILES]),
        len(listing.others),
        listing.remarks,
        is_drawn,
        listing.stamp.hexdigest(),
    )


def _unwrapped(place: bytes) -> tuple[bytes, _Found]:
    """The folder to be opened: `place`, or the only folder in it if that holds folders and no images itself."""
    top = _look_into(place)
    folders = [name for name in top.folders if not _holds_runs(place + b"/" + name)]
    if len(folders) == 1 and not top.images and not split_named(folders[0]):
        below = place + b"/" + folders[0]
        inner = _look_into(below)
        if inner.folders and not inner.images:
            return _unwrapped(below)
    return place, top


def _split_folders(place: bytes, top: _Found, is_whole: bool) -> dict[str, bytes]:
    """The folders of splits by their split; none if the folders in `place` are classes."""
    named = [(split, name) for name in top.folders if (split := split_named(name))]
    found = dict(reversed(named))
    inner = {name: _look_into(place + b"/" + name) for name in found.values()}
    if "train" in found:  # which may be the name of a class
        is_divided = len(found) > 1 or bool(inner[found["train"]].folders) or len(top.folders) == 1
    else:
        is_divided = is_whole and bool(found) and all(each.folders and not each.images for each in inner.values())
    if not is_divided:
        return {}
    if len(named) > len(found):
        twice = next(split for split in found if sum(split == other for other, _ in named) > 1)
        names = " and ".join(shown(name, 200) for split, name in named if split == twice)
        raise DataError(f"{shown(place, 200)}: expected one folder for {twice}, got {names}")
    if "train" not in found:  # what is measured alone
        return {"train": found["validation" if "validation" in found else "test"]}
    return found


class _Listing:
    """Lists class folders, and keeps account of what was found and what was not taken."""

    def __init__(self, place: bytes) -> None:
        self.place = place
        self.others: list[bytes] = []
        self.nested_images = 0
        self.digest, self.stamp = hashlib.sha256(), hashlib.sha256()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line on images that lie too deep, if there are any."""
        if not self.nested_images:
            return ()
        what = "1 image lies" if self.nested_images == 1 else f"{self.nested_images:,} images lie"
        return (f"{what} deeper than <class>/ and count nowhere, try to move them up into the folder of their class",)

    def read(self, prefix: bytes, classes: tuple[bytes, ...] | None) -> FolderImages:
        """The images in the class folders below `prefix`, which is empty or ends in a slash."""
        place = self.place + b"/" + prefix.rstrip(b"/") if prefix else self.place
        found = _look_into(place)
        present = [name for name in found.folders if not _holds_runs(place + b"/" + name)]
        runs = [name + b"/" for name in found.folders if name not in present]
        if not present or len(present) > MAX_CLASSES:
            raise _no_class_folders(place, found, len(present))
        self.others += [prefix + name for name in _files(found) + runs]
        classes = classes or tuple(present)
        index = {name: label for label, name in enumerate(classes)}
        if unknown := [name for name in present if name not in index]:
            raise DataError(
                f"{shown(place + b'/' + unknown[0], 200)}: expected a class that the training images have, got another "
                f"one, try to rename it, or to move it elsewhere ({len(unknown)} such)"
            )
        names: list[bytes] = []
        counts = np.zeros(len(classes), np.int64)
        for name in present:
            images = self._class(place, prefix, name)
            counts[index[name]] = len(images)
            names += images
        labels = np.repeat(np.arange(len(classes)), counts).astype(np.uint16)
        return FolderImages(place, prefix, classes, labels, Names.of(names))

    def read_if_labelled(self, prefix: bytes, classes: tuple[bytes, ...], is_needed: bool) -> FolderImages | None:
        """As `read`; None if that fails and nobody needs it: a test set without labels beside a validation set."""
        if is_needed:
            return self.read(prefix, classes)
        beside = _Listing(self.place)
        try:
            images = beside.read(prefix, classes)
        except DataError:
            self.others.append(prefix)
            return None
        self.others += beside.others
        self.nested_images += beside.nested_images
        return images

    def _class(self, place: bytes, prefix: bytes, name: bytes) -> list[bytes]:
        """The names of the images of a class."""
        found = _look_into(place + b"/" + name)
        where = prefix + name
        if not found.images:
            raise DataError(
                f"{shown(place + b'/' + name, 200)}: expected image files in the folder of a class, got none, "
                f"{len(found.folders)} folders{_named(found.folders)} and {len(found.others)} other files, {LAYOUTS}"
            )
        self.others += [where + b"/" + other for other in found.others + [folder + b"/" for folder in found.folders]]
        self.nested_images += sum(_images_below(place + b"/" + name + b"/" + folder) for folder in found.folders)
        self.digest.update(b"%b\0%d\0" % (where, len(found.images)))
        self.digest.update(b"".join(b"%b\0%d\0" % image[:2] for image in found.images))
        self.stamp.update(b"".join(b"%b\0%d\0%d\0" % image for image in found.images))
        return [image[0] for image in found.images]


def _no_class_folders(place: bytes, found: _Found, num_classes: int) -> DataError:
    if num_classes:
        return DataError(f"{shown(place, 200)}: expected at most {MAX_CLASSES:,} classes, got {num_classes:,}")
    got = f"{len(found.images)} images and {len(found.others)} other files" if _files(found) else "an empty folder"
    return DataError(
        f"{shown(place, 200)}: expected a folder for each class with its images in it, got {got}, {LAYOUTS}"
    )


def _named(folders: list[bytes]) -> str:
    named = ", ".join(shown(name, 40) for name in folders[:3])
    return f" ({named}{', ...' if len(folders) > 3 else ''})" if folders else ""


def _files(found: _Found) -> list[bytes]:
    """The files in a folder in which only folders are looked for."""
    return [*(name for name, _, _ in found.images), *found.others]


def _holds_runs(folder: bytes) -> bool:
    """Whether `folder` is a run of `vgg train`, or holds runs and no images."""
    if os.path.isfile(folder + b"/recipe.json"):  # noqa: PTH113 (a name that may be no text)
        return True
    found = _look_into(folder)
    runs = (os.path.isfile(folder + b"/" + name + b"/recipe.json") for name in found.folders)  # noqa: PTH113
    return not found.images and any(runs)


def _images_below(folder: bytes) -> int:
    """How many images by their names there are in `folder` and all folders below it; links are not followed."""
    if os.path.islink(folder):  # noqa: PTH114
        return 0
    return sum(
        name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(b".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _look_into(folder: bytes) -> _Found:
    found = _Found()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(b"."):
                    _sort_in(found, entry)
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder, 200)}: expected to read it, got: {error.strerror}") from None
    for names in (found.folders, found.images, found.others):
        names.sort()
    return found


def _sort_in(found: _Found, entry: "os.DirEntry[bytes]") -> None:
    try:
        if entry.is_dir():
            found.folders.append(entry.name)
            return
        is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
        status = entry.stat() if is_image else None
    except OSError:  # a link to nothing, or to itself: a bad image, if it is called like one
        is_image, status = entry.name.lower().endswith(IMAGE_SUFFIXES), None
    if not is_image:
        found.others.append(entry.name)
    elif status is not None and stat.S_ISREG(status.st_mode):
        found.images.append((entry.name, status.st_size, status.st_mtime_ns))
    else:
        found.images.append((entry.name, 0, 0))
