"""Image files in one folder per class."""

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggkit.data.samples import (
    IMAGE_SUFFIXES,
    MAX_CLASSES,
    ImageSource,
    SourceBuilder,
    StoredImages,
    first_three,
    split_named,
)
from vggkit.errors import DataError, shown

NAME_CHARACTERS = 1_000  # longer names of images and classes are shortened

LAYOUTS = "try <folder>/<class>/image.jpg, or <folder>/train/<class>/image.jpg and <folder>/val/<class>/image.jpg"


class _Listing(NamedTuple):
    """The visible entries of a folder, sorted by name."""

    folders: list[str]
    images: list[tuple[str, int, int]]
    """Name, bytes and modification time in ns of each file with an image suffix; zeros if it is not regular."""
    others: list[str]

    @property
    def files(self) -> list[str]:
        """The names of all files."""
        return [*(name for name, _, _ in self.images), *self.others]


def open_folder(folder: Path, only_evaluate: bool) -> ImageSource:
    """The images in `train/<class>/`, `val/<class>/` and `test/<class>/`, or in `<class>/`, as split `train`.

    Splits are named by `SPLIT_WORDS`. If the only entry of `folder` is a folder of folders, that one is opened. A
    folder of runs is never a class. `only_evaluate` accepts a validation or test folder without a training folder.

    Raises:
        DataError: a folder cannot be listed, a class is empty or unknown, or the layout is another one.
    """
    place, top = _skip_wrappers(str(folder.absolute()))
    folders = _split_folders(place, top, only_evaluate)
    builder, classes = SourceBuilder(), list[str]()
    if folders:
        others = [name for name in top.folders if name not in folders.values()]
        builder.other_files += map(_printable, [*top.files, *(f"{name}/" for name in others)])
    splits = {}
    for split, name in (folders or {"train": ""}).items():
        is_spare = split == "test" and "validation" in folders  # it may be a test set without labels
        beside = SourceBuilder() if is_spare else builder
        try:
            splits[split], classes = _open_split(place, name and f"{name}/", classes, beside)
        except DataError:
            if not is_spare:
                raise
            builder.other_files.append(_printable(f"{name}/"))
        else:
            builder.other_files += beside.other_files if is_spare else []
            builder.num_nested += beside.num_nested if is_spare else 0
    return builder.build(shown(folder.name or place, 200), tuple(map(_printable, classes)), splits)


def _printable(name: str) -> str:
    return shown(name, NAME_CHARACTERS)


def _skip_wrappers(place: str) -> tuple[str, _Listing]:
    """`place`, or the folder of folders that is its only entry, and so on; and its listing."""
    top = list_folder(place)
    folders = [name for name in top.folders if not holds_runs(f"{place}/{name}")]
    if len(folders) == 1 and not top.images and not split_named(folders[0]):
        inner = list_folder(f"{place}/{folders[0]}")
        if inner.folders and not inner.images:
            return _skip_wrappers(f"{place}/{folders[0]}")
    return place, top


def _split_folders(place: str, top: _Listing, only_evaluate: bool) -> dict[str, str]:
    """The folder of each split, train first; empty if the folders in `place` are classes."""
    folders_of: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in top.folders:
        folders_of.get(split_named(name) or "", []).append(name)
    split_folders = {split: names[0] for split, names in folders_of.items() if names}
    inner = [list_folder(f"{place}/{name}") for name in split_folders.values()]
    if "train" in split_folders:  # also a possible name of a class
        is_divided = len(split_folders) > 1 or bool(inner[0].folders) or len(top.folders) == 1
    else:
        hold_classes = all(listing.folders and not listing.images for listing in inner)
        is_divided = only_evaluate and bool(split_folders) and hold_classes
    if not is_divided:
        return {}
    for split, names in folders_of.items():
        if len(names) > 1:
            raise DataError(
                f"{shown(place, 200)}: expected one folder for {split}, got {' and '.join(map(_printable, names))}"
            )
    return split_folders if "train" in split_folders else {"train": next(iter(split_folders.values()))}


def _open_split(place: str, prefix: str, classes: list[str], builder: SourceBuilder) -> tuple[StoredImages, list[str]]:
    """The images in the class folders below `prefix`, and the classes: the given ones, or those found."""
    split = list_folder(place + "/" + prefix)
    where = shown((place + "/" + prefix).rstrip("/"), 200)
    present = [name for name in split.folders if not holds_runs(f"{place}/{prefix}{name}")]
    if not present:
        got = f"{len(split.images)} images and {len(split.others)} other files" if split.files else "an empty folder"
        raise DataError(f"{where}: expected a folder for each class with its images in it, got {got}, {LAYOUTS}")
    if len(present) > MAX_CLASSES:
        raise DataError(f"{where}: expected at most {MAX_CLASSES:,} classes, got {len(present):,}")
    builder.other_files += [_printable(prefix + name) for name in split.files]
    builder.other_files += [_printable(f"{prefix}{name}/") for name in split.folders if name not in present]
    classes = classes or present
    index = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in present if name not in index]:
        raise DataError(
            f"{where}/{shown(unknown[0], 200)}: expected a class that the training images have, got another one, "
            f"try to rename it, or to move it elsewhere ({len(unknown)} such)"
        )
    names, labels = list[bytes](), list[int]()
    for name in present:
        inner = list_folder(f"{place}/{prefix}{name}")
        if not inner.images:
            subfolders = f" ({first_three([shown(folder, 40) for folder in inner.folders])})" if inner.folders else ""
            raise DataError(
                f"{where}/{shown(name, 200)}: expected image files in the folder of a class, got none, "
                f"{len(inner.folders)} folders{subfolders} and {len(inner.others)} other files, {LAYOUTS}"
            )
        others = [*inner.others, *(f"{folder}/" for folder in inner.folders)]
        builder.other_files += [_printable(f"{prefix}{name}/{other}") for other in others]
        builder.add_files(prefix + name, inner.images)
        builder.num_nested += sum(_count_images(f"{place}/{prefix}{name}/{folder}") for folder in inner.folders)
        names += [os.fsencode(image) for image, _, _ in inner.images]
        labels += [index[name]] * len(inner.images)
    return _folder_images(place, prefix, classes, labels, names), classes


def _folder_images(place: str, prefix: str, classes: list[str], labels: list[int], names: list[bytes]) -> StoredImages:
    packed, label_of = np.array(names), np.array(labels, np.uint16)  # as bytes: 28 MB for ImageNet's names

    def read(number: int) -> tuple[str, Path]:
        path = f"{prefix}{classes[label_of[number]]}/{os.fsdecode(bytes(packed[number]))}"
        return _printable(path), Path(place, path)

    return StoredImages(lambda: read, label_of, np.arange(len(names)))


def holds_runs(folder: str) -> bool:
    """Whether `folder` is a run of `vgg train`, or holds runs and no images."""
    if Path(folder, "recipe.json").is_file():
        return True
    try:
        names = os.listdir(folder)  # noqa: PTH208 (faster for a million names)
    except OSError:  # `list_folder` reports it
        return False
    return not any(map(_is_image, names)) and any(Path(folder, name, "recipe.json").is_file() for name in names)


def _count_images(folder: str) -> int:
    """The number of image files, by suffix, in `folder` and all folders below it; links are not followed."""
    if Path(folder).is_symlink():
        return 0
    return sum(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def list_folder(folder: str) -> _Listing:
    """The visible entries of `folder`; raises `DataError`."""
    listing = _Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    _add_entry(listing, entry)
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder, 200)}: expected to read it, got: {error.strerror}") from None
    for names in listing:
        names.sort()
    return listing


def _add_entry(listing: _Listing, entry: "os.DirEntry[str]") -> None:
    num_bytes = time_ns = 0
    with contextlib.suppress(OSError):  # a dangling or circular link is a bad image if its suffix is an image's
        if entry.is_dir():
            listing.folders.append(entry.name)
            return
        if _is_image(entry.name) and stat.S_ISREG((status := entry.stat()).st_mode):
            num_bytes, time_ns = status.st_size, status.st_mtime_ns
    if _is_image(entry.name):
        listing.images.append((entry.name, num_bytes, time_ns))
    else:
        listing.others.append(entry.name)
