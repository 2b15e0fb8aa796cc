"""ImageNet's 1000 classes (ILSVRC 2012), in the order of all published weights, and its validation images."""

import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from vggkit.data.files import read_at_most, too_long
from vggkit.data.folders import holds_runs, look_into
from vggkit.data.samples import Account, ImageSource, StoredImages
from vggkit.errors import DataError, shown

VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.jpe?g", re.IGNORECASE)
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT, KIND = "ILSVRC2012_devkit_t12", "the file of ILSVRC 2012, "
MOST_TRUTH_BYTES, MOST_META_BYTES = 2**20, 2**24
"""Of the files of the development kit, and of what the second holds once it is decompressed."""


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes; `class 0`, `class 1`, ... for any other number."""
    names = _lines("imagenet_classes.txt")
    return names if num_classes == len(names) else [f"class {index}" for index in range(num_classes)]


def synsets() -> list[str]:
    """The WordNet numbers of the classes, such as `n01440764`, which ImageNet's folders are called by."""
    return _lines("imagenet_synsets.txt")


def open_flat_validation(folder: Path) -> ImageSource | None:
    """ImageNet's validation images as its archive has them, all in one folder; None if `folder` is no such folder.

    The labels are in two files of the development kit, which lie in `folder`, beside it, or in the kit's own folder
    there. Any part of the 50,000 images will do: their names hold their numbers. A folder with other folders in it, but
    for the kit's own and those of runs, is one of classes, whatever images lie beside them.

    Raises:
        DataError: those files are not there, or are not those of ILSVRC 2012; or two images have one number.
    """
    found = _images_in(folder)
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
    truth_file = places[0] / TRUTH
    truth = read_at_most(truth_file, shown(str(truth_file), 200), MOST_TRUTH_BYTES, KIND)
    classes = synsets()
    order = _synsets_in(places[0] / META)
    names = [name for name, _, _ in found]
    numbers = [int(match[1]) for match in map(VALIDATION.fullmatch, names) if match]
    if len(set(numbers)) < len(numbers):
        (twice, _), *_ = Counter(numbers).most_common(1)
        raise DataError(f"{where}: expected one image of each number, got several of {twice}, try to move all but one")
    try:
        ids = [int(line) if line.isdigit() else 0 for line in truth.split()]
        labels = [classes.index(order[ids[number - 1] - 1]) for number in numbers if number]
    except (ValueError, IndexError):
        labels = []
    if len(labels) != len(numbers) or sorted(order) != sorted(classes) or min(ids) < 1:
        raise DataError(f"{where}: expected the labels and classes of ILSVRC 2012 in {TRUTH} and {META}, got others")
    account = Account()
    account.add_files("", found)
    account.digest.update(truth)
    images = StoredImages(
        lambda: lambda number: (names[number], folder / names[number]),
        np.array(labels, np.uint16),
        np.arange(len(names)),
    )
    return account.source(shown(folder.name, 200), tuple(classes), {"train": images})


def _images_in(folder: Path) -> list[tuple[str, int, int]]:
    """The name, bytes and time of change of each image; none if there are folders of classes."""
    try:
        found = look_into(str(folder))
    except DataError:
        return []  # what it is, the reader of other folders says
    for name in found.folders:
        if name != DEVKIT and not VALIDATION.fullmatch(name) and not holds_runs(f"{folder}/{name}"):
            return []
    return [image for image in found.images if VALIDATION.fullmatch(image[0])]


def _synsets_in(path: Path) -> list[str]:
    """The synsets of the classes 1 to 1000, whose order is that of their entries in the kit's MATLAB file."""
    name, start, text = shown(str(path), 200), 128, bytearray()
    content = read_at_most(path, name, MOST_META_BYTES, KIND)
    while start + 8 <= len(content):
        kind, size = (int.from_bytes(content[start + at : start + at + 4], "little") for at in (0, 4))
        part = content[start + 8 : start + 8 + size]
        try:
            most = MOST_META_BYTES - len(text) + 1
            text += zlib.decompressobj().decompress(part, most) if kind == 15 else part
        except zlib.error:
            break
        if len(text) > MOST_META_BYTES:
            raise too_long(name, MOST_META_BYTES, KIND)
        start += 8 + size
    letters = text.replace(b"\0", b"")  # MATLAB may write two bytes for each
    return [match.decode() for match in re.findall(rb"n\d{8}", letters)][:1000]


def _lines(file: str) -> list[str]:
    return (Path(__file__).parent / file).read_text().splitlines()
