"""`vgg data`: list and fetch the known data sets, and check any data set."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from vggkit.design.table import Table
from vggkit.errors import DataError
from vggkit.verbs.terminal import DONE, FAILED, check_workers, parse_flags, print_json, print_to_stderr

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vggkit.data.samples import Images, ImageSource

    Thumbnails = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]
    """The positions of images in their split, and their thumbnails, (images, 3, side, side)."""

MAX_LISTED_IMAGES = 20


@dataclass(frozen=True)
class List:
    """List the known data sets and where they are stored."""

    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Fetch:
    """Fetch a data set and verify its hashes."""

    name: Positional[Literal["fashion-mnist"]] = "fashion-mnist"
    """The data set to fetch."""


@dataclass(frozen=True)
class Check:
    """Read every image of a data set, count the classes and name the bad images."""

    data: Positional[str] = "fashion-mnist"
    """What to check, as for vgg train --data."""
    data_dir: Path | None = None
    """Folder to search for Fashion-MNIST first."""
    holdout: float = 0.1
    """Share of each class to hold out if there is no validation or test set."""
    seed: int = 0
    """Seed of the choice of held-out images."""
    workers: int | None = None
    """Threads that decode image files; half of the cores, at most 16, if not given."""
    duplicates: bool = False
    """Name the images of other splits that are near-duplicates of a training image."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Flags:
    """List, fetch and check data sets: Fashion-MNIST and your own.

    Examples:
      vgg data fetch fashion-mnist
      vgg data check photos
    """

    action: List | Fetch | Check = List()


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 1 if there are bad images or, with --duplicates, duplicates."""
    action = parse_flags("data", Flags, arguments).action
    if isinstance(action, Check):
        return _check(action)
    from vggkit.data import fashion_mnist

    if isinstance(action, Fetch):
        print(fashion_mnist.fetch(print_to_stderr))
    else:
        _list(action)
    return DONE


def _list(flags: List) -> None:
    from vggkit.data import fashion_mnist

    known = []
    for name in (fashion_mnist.FULL_NAME, fashion_mnist.SAMPLE_NAME):
        try:
            is_full = name == fashion_mnist.FULL_NAME
            folder = fashion_mnist.find(flags.data_dir) if is_full else fashion_mnist.SAMPLE_PLACE
            fashion_mnist.verify(name, folder)
            known.append({"name": name, "where": str(folder), "state": "verified"})
        except DataError as error:
            known.append({"name": name, "where": "", "state": str(error)})
    if flags.json:
        print_json(known)
    else:
        rows = [(entry["name"], entry["where"] or entry["state"]) for entry in known]
        print(Table(("name", "where it is, or why not"), [rows], 2))


def _check(flags: Check) -> int:
    check_workers(flags.workers)
    import numpy as np

    from vggkit.data.samples import ArrayImages
    from vggkit.data.sources import open_data

    data = open_data(flags.data, data_dir=flags.data_dir, holdout=flags.holdout, seed=flags.seed)
    bad: dict[str, str] = {}
    counts: dict[str, list[int]] = {}
    thumbnails: dict[str, Thumbnails] = {}
    for split, images in data.splits.items():
        if isinstance(images, ArrayImages) and not flags.duplicates:
            labels = images.labels.astype(np.int64)
        else:
            labels, pixels = _read_thumbnails(images, flags.workers, bad)
            thumbnails[split] = np.flatnonzero(labels >= 0), pixels[labels >= 0]
        class_counts = Counter(labels.tolist())
        counts["training" if split == "train" else split] = [class_counts[label] for label in range(len(data.classes))]
    duplicates = _duplicates(data, thumbnails) if flags.duplicates else []
    code = FAILED if bad or duplicates else DONE
    if flags.json:
        sizes = {name: {split: counts[split][label] for split in counts} for label, name in enumerate(data.classes)}
        report = {"name": data.name, "classes": sizes, "bad_images": bad, "other_files": len(data.other_files)}
        print_json(report | ({"duplicates": duplicates} if flags.duplicates else {}))
        return code
    rows = [(name, *map("{:,}".format, row)) for name, *row in zip(data.classes, *counts.values(), strict=True)]
    total = [("all", *(f"{sum(column):,}" for column in counts.values()))]
    print(Table(("class", *counts), [rows, total]), *data.notes, sep="\n")
    count = "1 bad image" if len(bad) == 1 else f"{len(bad):,} bad images"
    print(count + (", which --bad-images skip leaves out:" if bad else ""))
    _print_first([f"{name}: {reason}" for name, reason in bad.items()])
    if flags.duplicates:
        ending = ":" * bool(duplicates)
        print(f"{len(duplicates):,} images kept out of training that nearly equal a training image{ending}")
        _print_first([f"{pair['image']} ({pair['split']}): {pair['like']}" for pair in duplicates])
    return code


def _print_first(lines: list[str]) -> None:
    for line in lines[:MAX_LISTED_IMAGES]:
        print(f"  {line}")
    if len(lines) > MAX_LISTED_IMAGES:
        print(f"  and {len(lines) - MAX_LISTED_IMAGES:,} more, see --json")


def _read_thumbnails(images: "Images", num_workers: int | None, bad: dict[str, str]) -> "Thumbnails":
    """The labels, (images,), below 0 for a bad image, and the thumbnails, (images, 3, side, side).

    The name of each bad image, and the reason, are added to `bad`.
    """
    import numpy as np

    from vggkit.data.duplicates import THUMBNAIL_SIDE
    from vggkit.data.images import FittedImage
    from vggkit.data.loader import Loader, default_workers, in_parts
    from vggkit.data.preprocessing import Preprocessing

    # Every training reads whole images; colour is the most that it decodes.
    read = FittedImage(Preprocessing(THUMBNAIL_SIDE, 3, (0.0,) * 3, (1.0,) * 3))
    workers = default_workers() if num_workers is None else num_workers
    loader = Loader(images, read, seed=0, num_workers=workers, pin_memory=False, bad_images="skip")
    batches = list(loader.batches(in_parts(np.arange(len(images)), 256), epoch=0))
    bad |= loader.bad
    return np.concatenate([y.numpy() for _, y in batches]), np.concatenate([x.numpy() for x, _ in batches])


def _duplicates(data: "ImageSource", thumbnails: "dict[str, Thumbnails]") -> list[dict[str, object]]:
    """The near-duplicates of training images in the other splits, each with the nearest training image."""
    from vggkit.data.duplicates import near_duplicates

    duplicates: list[dict[str, object]] = []
    train_positions, train_pixels = thumbnails.pop("train")
    for split, (positions, pixels) in thumbnails.items():
        pairs = near_duplicates(pixels, train_pixels)
        images = _names(data.splits[split], [int(positions[pair.image]) for pair in pairs])
        originals = _names(data.splits["train"], [int(train_positions[pair.like]) for pair in pairs])
        duplicates += [
            {"split": split, "image": image, "like": original, "difference": round(pair.difference, 2)}
            for image, original, pair in zip(images, originals, pairs, strict=True)
        ]
    return duplicates


def _names(images: "Images", positions: list[int]) -> list[str]:
    read = images.reader(seed=0, epoch=0)
    names = {position: read(position).name for position in sorted(set(positions))}  # a stream is read in order
    return [names[position] for position in positions]
