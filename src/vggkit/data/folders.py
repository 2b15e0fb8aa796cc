"""Image files in a folder for each class."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vggkit.data.samples import IMAGE_SUFFIXES, MAX_CLASSES, Account, ImageSource, StoredImages, some_of, split_named
from vggkit.errors import DataError, shown

NAME_CHARACTERS = 1_000
"""The length of the longest name of an image or a class."""

LAYOUTS = "try <folder>/<class>/image.jpg, or <folder>/train/<class>/image.jpg and <folder>/val/<class>/image.jpg"


class _Entries(NamedTuple):
    """What a folder holds, without hidden names; names are sorted."""

    folders: list[str]
    images: list[tuple[str, int, int]]
    """The name, bytes and time of change of each file that is an image by its name; 0 for what is no regular file."""
    others: list[str]

    @property
    def files(self) -> list[str]:
        """The names of the images and the others."""
        return [*(name for name, _, _ in self.images), *self.others]


def open_folder(folder: Path, is_measured: bool) -> ImageSource:
    """The images in `train/<class>/`, `val/<class>/` and `test/<class>/`, or in `<class>/`, which is called `train`.

    Args:
        folder: the names of splits are those of `SPLIT_WORDS`, in any case. A single folder within it that holds
            folders alone is opened instead of it. A folder with runs of `vgg train` in it is never a class.
        is_measured: a validation or a test folder alone will do.

    Raises:
        DataError: a folder cannot be listed, a class is empty or unknown, or the layout is another one.
    """
    place, top = _unwrapped(str(folder.absolute()))
    folders = _split_folders(place, top, is_measured)
    account, classes = Account(), list[str]()
    if folders:
        others = [name for name in top.folders if name not in folders.values()]
        account.others += map(_shown, [*top.files, *(f"{name}/" for name in others)])
    splits = {}
    for split, name in (folders or {"train": ""}).items():
        is_spare = split == "test" and "validation" in folders  # as a test set without labels beside a validation set
        beside = Account() if is_spare else account
        try:
            splits[split], classes = _open_split(place, name and f"{name}/", classes, beside)
        except DataError:
            if not is_spare:
                raise
            account.others.append(_shown(f"{name}/"))
        else:
            account.others += beside.others if is_spare else []
            account.num_nested += beside.num_nested if is_spare else 0
    return account.source(shown(folder.name or place, 200), tuple(map(_shown, classes)), splits)


def _shown(name: str) -> str:
    return shown(name, NAME_CHARACTERS)


def _unwrapped(place: str) -> tuple[str, _Entries]:
    """The folder to be opened: `place`, or the only folder in it if that holds folders and no images itself."""
    top = look_into(place)
    folders = [name for name in top.folders if not holds_runs(f"{place}/{name}")]
    if len(folders) == 1 and not top.images and not split_named(folders[0]):
        inner = look_into(f"{place}/{folders[0]}")
        if inner.folders and not inner.images:
            return _unwrapped(f"{place}/{folders[0]}")
    return place, top


def _split_folders(place: str, top: _Entries, is_measured: bool) -> dict[str, str]:
    """The folders of the splits train, validation and test; none if the folders in `place` are classes."""
    named: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in top.folders:
        named.get(split_named(name) or "", []).append(name)
    found = {split: names[0] for split, names in named.items() if names}
    inner = [look_into(f"{place}/{name}") for name in found.values()]
    if "train" in found:  # which may be the name of a class
        is_divided = len(found) > 1 or bool(inner[0].folders) or len(top.folders) == 1
    else:
        is_divided = is_measured and bool(found) and all(each.folders and not each.images for each in inner)
    if not is_divided:
        return {}
    for split, names in named.items():
        if len(names) > 1:
            raise DataError(
                f"{shown(place, 200)}: expected one folder for {split}, got {' and '.join(map(_shown, names))}"
            )
    return found if "train" in found else {"train": next(iter(found.values()))}


def _open_split(place: str, prefix: str, classes: list[str], account: Account) -> tuple[StoredImages, list[str]]:
    """The images in the class folders below `prefix`, and the classes: these, if none were known before."""
    found = look_into(place + "/" + prefix)
    where = shown((place + "/" + prefix).rstrip("/"), 200)
    present = [name for name in found.folders if not holds_runs(f"{place}/{prefix}{name}")]
    if not present:
        got = f"{len(found.images)} images and {len(found.others)} other files" if found.files else "an empty folder"
        raise DataError(f"{where}: expected a folder for each class with its images in it, got {got}, {LAYOUTS}")
    if len(present) > MAX_CLASSES:
        raise DataError(f"{where}: expected at most {MAX_CLASSES:,} classes, got {len(present):,}")
    account.others += [_shown(prefix + name) for name in found.files]
    account.others += [_shown(f"{prefix}{name}/") for name in found.folders if name not in present]
    classes = classes or present
    index = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in present if name not in index]:
        raise DataError(
            f"{where}/{shown(unknown[0], 200)}: expected a class that the training images have, got another one, "
            f"try to rename it, or to move it elsewhere ({len(unknown)} such)"
        )
    names, labels = list[bytes](), list[int]()
    for name in present:
        inner = look_into(f"{place}/{prefix}{name}")
        if not inner.images:
            named = f" ({some_of([shown(folder, 40) for folder in inner.folders])})" if inner.folders else ""
            raise DataError(
                f"{where}/{shown(name, 200)}: expected image files in the folder of a class, got none, "
                f"{len(inner.folders)} folders{named} and {len(inner.others)} other files, {LAYOUTS}"
            )
        others = [*inner.others, *(f"{folder}/" for folder in inner.folders)]
        account.others += [_shown(f"{prefix}{name}/{other}") for other in others]
        account.add_files(prefix + name, inner.images)
        account.num_nested += sum(_images_below(f"{place}/{prefix}{name}/{folder}") for folder in inner.folders)
        names += [os.fsencode(image) for image, _, _ in inner.images]
        labels += [index[name]] * len(inner.images)
    return _stored(place, prefix, classes, labels, names), classes


def _stored(place: str, prefix: str, classes: list[str], labels: list[int], names: list[bytes]) -> StoredImages:
    packed, label_of = np.array(names), np.array(labels, np.uint16)  # 28 MB for the names of ImageNet's images

    def read(number: int) -> tuple[str, Path]:
        path = f"{prefix}{classes[label_of[number]]}/{os.fsdecode(bytes(packed[number]))}"
        return _shown(path), Path(place, path)

    return StoredImages(lambda: read, label_of, np.arange(len(names)))


def holds_runs(folder: str) -> bool:
    """Whether `folder` is a run of `vgg train`, or holds runs and no images."""
    if Path(folder, "recipe.json").is_file():
        return True
    try:
        names = os.listdir(folder)  # noqa: PTH208 (a million names, without a look at the files)
    except OSError:  # which is told when it is looked into
        return False
    return not any(map(_is_image, names)) and any(Path(folder, name, "recipe.json").is_file() for name in names)


def _images_below(folder: str) -> int:
    """How many images by their names there are in `folder` and all folders below it; links are not followed."""
    if Path(folder).is_symlink():
        return 0
    return sum(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def look_into(folder: str) -> _Entries:
    """What is in `folder` but for hidden files, each kind by name; raises `DataError`."""
    found = _Entries([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    _sort_in(found, entry)
    except OSError as error:
        raise DataError(f"{shown(error.filename or folder, 200)}: expected to read it, got: {error.strerror}") from None
    for names in found:
        names.sort()
    return found


def _sort_in(found: _Entries, entry: "os.DirEntry[str]") -> None:
    is_image, status = _is_image(entry.name), None
    try:
        if entry.is_dir():
            found.folders.append(entry.name)
            return
        status = entry.stat() if is_image else None
    except OSError:  # a link to nothing, or to itself: a bad image, if it is called like one
        pass
    if not is_image:
        found.others.append(entry.name)
    elif status is not None and stat.S_ISREG(status.st_mode):
        found.images.append((entry.name, status.st_size, status.st_mtime_ns))
    else:
        found.images.append((entry.name, 0, 0))
