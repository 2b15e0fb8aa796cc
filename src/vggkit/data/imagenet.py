"""ImageNet's 1000 classes (ILSVRC 2012), in the order of all published weights, and its validation images."""

import os
import re
import zlib
from pathlib import Path

import numpy as np

from vggkit.data.samples import Account, ImageSource, StoredImages
from vggkit.errors import DataError, shown

VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT = "ILSVRC2012_devkit_t12"
MOST_META_BYTES = 2**24


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes; `class 0`, `class 1`, ... for any other number."""
    names = _lines("imagenet_classes.txt")
    return names if num_classes == len(names) else [f"class {index}" for index in range(num_classes)]


def synsets() -> list[str]:
    """The WordNet numbers of the classes, such as `n01440764`, which ImageNet's folders are called by."""
    return _lines("imagenet_synsets.txt")


def open_flat_validation(folder: Path) -> ImageSource | None:
    """ImageNet's validation images as its archive has them, all in one folder; None if `folder` holds no such image.

    The labels are in two files of the development kit, which lie in `folder`, beside it, or in the kit's own folder
    there. Any part of the 50,000 images will do: their names hold their numbers.

    Raises:
        DataError: those files are not there, or are not those of ILSVRC 2012.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, *_stamp(entry)) for entry in entries if VALIDATION.fullmatch(entry.name))
    except OSError:
        return None  # what it is, the reader of other folders says
    if not found:
        return None
    known = [kit / "data" for kit in (folder / DEVKIT, folder.parent / DEVKIT)]
    places = [place for place in (folder, folder.parent, *known) if all((place / f).is_file() for f in (TRUTH, META))]
    where = shown(str(folder), 200)
    if not places:
        raise DataError(
            f"{where}: expected {TRUTH} and {META} of ImageNet's development kit in or beside a folder of validation "
            f"images, got none, try to unpack {DEVKIT} beside it"
        )
    truth = (places[0] / TRUTH).read_bytes()
    classes = synsets()
    order = _synsets_in(places[0] / META)
    numbers = [int(match[1]) for name, _, _ in found if (match := VALIDATION.fullmatch(name))]
    try:
        ids = [int(line) for line in truth.split()]
        labels = [classes.index(order[ids[number - 1] - 1]) for number in numbers if number]
    except (ValueError, IndexError):
        labels = []
    if len(labels) != len(numbers) or sorted(order) != sorted(classes) or min(ids) < 1:
        raise DataError(f"{where}: expected the labels and classes of ILSVRC 2012 in {TRUTH} and {META}, got others")
    names, account = [name for name, _, _ in found], Account()
    account.add_files("", found)
    account.digest.update(truth)
    images = StoredImages(
        lambda: lambda number: (names[number], folder / names[number]),
        np.array(labels, np.uint16),
        np.arange(len(names)),
    )
    return account.source(shown(folder.name, 200), tuple(classes), {"train": images})


def _stamp(entry: "os.DirEntry[str]") -> tuple[int, int]:
    """Bytes and time of change of a file; 0 for a link to nothing."""
    try:
        status = entry.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _synsets_in(path: Path) -> list[str]:
    """The synsets of the classes 1 to 1000, whose order is that of their entries in the kit's MATLAB file."""
    content, start, texts = path.read_bytes()[:MOST_META_BYTES], 128, list[bytes]()
    while start + 8 <= len(content):
        kind, size = (int.from_bytes(content[start + at : start + at + 4], "little") for at in (0, 4))
        part = content[start + 8 : start + 8 + size]
        try:
            texts.append(zlib.decompressobj().decompress(part, MOST_META_BYTES) if kind == 15 else part)
        except zlib.error:
            break
        start += 8 + size
    letters = b"".join(texts).replace(b"\0", b"")  # MATLAB may write two bytes for each
    return [match.decode() for match in re.findall(rb"n\d{8}", letters)][:1000]


def _lines(file: str) -> list[str]:
    return (Path(__file__).parent / file).read_text().splitlines()
