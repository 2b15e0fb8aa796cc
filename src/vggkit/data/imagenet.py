"""ImageNet's 1000 classes (ILSVRC 2012), in the order of all published weights, and its validation images."""

import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from vggkit.data.files import read_at_most
from vggkit.data.folders import holds_runs, list_folder
from vggkit.data.samples import ImageSource, SourceBuilder, StoredImages
from vggkit.errors import DataError, shown

VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})\.jpe?g", re.IGNORECASE)
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVKIT, KIND = "ILSVRC2012_devkit_t12", "the file of ILSVRC 2012, "
MAX_TRUTH_BYTES, MAX_META_BYTES = 2**20, 2**24
"""Of the files of the development kit, and of the decompressed second one."""


def class_names(num_classes: int) -> list[str]:
    """ImageNet's names for 1000 classes; `class 0`, `class 1`, ... for any other number."""
    names = _read_lines("imagenet_classes.txt")
    return names if num_classes == len(names) else [f"class {index}" for index in range(num_classes)]


def synsets() -> list[str]:
    """The WordNet identifiers of the classes, such as `n01440764`, which name ImageNet's folders."""
    return _read_lines("imagenet_synsets.txt")


def open_flat_validation(folder: Path) -> ImageSource | None:
    """ImageNet's validation images, all in one folder as in its archive; None if `folder` is not such a folder.

    The labels are in two files of the development kit, in `folder`, beside it, or in the kit's own folder there. Any
    subset of the 50,000 images is accepted. A folder with subfolders other than the kit's and runs is one of classes.

    Raises:
        DataError: these files are missing or not those of ILSVRC 2012; or two images have the same number.
    """
    files = _validation_images(folder)
    if not files:
        return None
    candidates = (folder, folder.parent, folder / DEVKIT / "data", folder.parent / DEVKIT / "data")
    kits = [kit for kit in candidates if (kit / TRUTH).is_file() and (kit / META).is_file()]
    where = shown(str(folder), 200)
    if not kits:
        raise DataError(
            f"{where}: expected {TRUTH} and {META} of ImageNet's development kit in or beside a folder of validation "
            f"images, got none, try to unpack {DEVKIT} beside it"
        )
    truth = read_at_most(kits[0] / TRUTH, shown(str(kits[0] / TRUTH), 200), MAX_TRUTH_BYTES, KIND)
    classes, order = synsets(), _read_synsets(kits[0] / META)
    names = [name for name, _, _ in files]
    numbers = [int(match[1]) for match in map(VALIDATION.fullmatch, names) if match]
    if len(set(numbers)) < len(numbers):
        [(number, _)] = Counter(numbers).most_common(1)
        raise DataError(f"{where}: expected one image of each number, got several of {number}, try to move all but one")
    try:
        ids = [int(line) if line.isdigit() else 0 for line in truth.split()]
        labels = [classes.index(order[ids[number - 1] - 1]) for number in numbers if number]
    except (ValueError, IndexError):
        labels = []
    if len(labels) != len(numbers) or sorted(order) != sorted(classes) or min(ids) < 1:
        raise DataError(f"{where}: expected the labels and classes of ILSVRC 2012 in {TRUTH} and {META}, got others")
    builder = SourceBuilder()
    builder.add_files("", files)
    builder.digest.update(truth)
    images = StoredImages(
        lambda: lambda number: (names[number], folder / names[number]),
        np.array(labels, np.uint16),
        np.arange(len(names)),
    )
    return builder.build(shown(folder.name, 200), tuple(classes), {"train": images})


def _validation_images(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and modification time of each image; none if there are folders of classes."""
    try:
        listing = list_folder(str(folder))
    except DataError:
        return []  # `open_folder` reports it
    for name in listing.folders:
        if name != DEVKIT and not VALIDATION.fullmatch(name) and not holds_runs(f"{folder}/{name}"):
            return []
    return [image for image in listing.images if VALIDATION.fullmatch(image[0])]


def _read_synsets(path: Path) -> list[str]:
    """The synsets of the classes 1 to 1000, in the order of their entries in the kit's MATLAB file."""
    name, start, text = shown(str(path), 200), 128, bytearray()
    content = read_at_most(path, name, MAX_META_BYTES, KIND)
    while start + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, start)
        part = content[start + 8 : start + 8 + size]
        try:
            max_bytes = MAX_META_BYTES - len(text) + 1
            text += zlib.decompressobj().decompress(part, max_bytes) if kind == 15 else part
        except zlib.error:
            break
        if len(text) > MAX_META_BYTES:
            raise DataError(f"{name}: expected {KIND}at most {MAX_META_BYTES:,} bytes, got more")
        start += 8 + size
    letters = text.replace(b"\0", b"")  # MATLAB may write two bytes a letter
    return [match.decode() for match in re.findall(rb"n\d{8}", letters)][:1000]


def _read_lines(file: str) -> list[str]:
    return (Path(__file__).parent / file).read_text().splitlines()
