"""`vgg data`: the data sets that are known, how to get them, and what is in your own."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from vggkit.errors import DataError
from vggkit.verbs.terminal import DONE, FAILED, parse_flags, print_json, print_table, print_to_stderr

if TYPE_CHECKING:
    from vggkit.data.samples import Images

NAMED_IMAGES = 20


@dataclass(frozen=True)
class List:
    """List the data sets that are known and where they are."""

    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Fetch:
    """Fetch a data set, and verify what came."""

    name: Positional[Literal["fashion-mnist"]] = "fashion-mnist"
    """The data set to fetch."""


@dataclass(frozen=True)
class Check:
    """Read every image of a data set, count the classes and name the bad images."""

    name: Annotated[Positional[str], arg(metavar="DATA")] = "fashion-mnist"
    """What to check, as for vgg train --data."""
    data_dir: Path | None = None
    """Where to look for Fashion-MNIST first."""
    holdout: float = 0.1
    """Share of each class that is kept out, where there is no validation or test set."""
    seed: int = 0
    """Seed that decides which images are kept out."""
    workers: int | None = None
    """Threads that decode image files; half of the cores, at most 16, if not given."""
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
    """Run the verb; returns the exit code: 1 if there are bad images."""
    action = parse_flags("data", Flags, arguments).action
    if isinstance(action, Check):
        return _check(action)
    from vggkit.data import fashion_mnist

    if isinstance(action, Fetch):
        print(fashion_mnist.fetch(print_to_stderr))
        return DONE
    known = []
    for name in (fashion_mnist.FULL_NAME, fashion_mnist.SAMPLE_NAME):
        try:
            place = (
                fashion_mnist.find(action.data_dir) if name == fashion_mnist.FULL_NAME else fashion_mnist.SAMPLE_PLACE
            )
            fashion_mnist.verify(name, place)
            where, state = str(place), "verified"
        except DataError as error:
            where, state = "", str(error)
        known.append({"name": name, "where": where, "state": state})
    if action.json:
        print_json(known)
    else:
        print_table(("name", "where", "state"), [[tuple(row.values()) for row in known]], left_aligned=3)
    return DONE


def _check(flags: Check) -> int:
    from vggkit.data.samples import ArrayImages
    from vggkit.data.sources import open_data

    data = open_data(flags.name, data_dir=flags.data_dir, holdout=flags.holdout, seed=flags.seed)
    bad: dict[str, str] = {}
    counts: dict[str, list[int]] = {}
    for split, images in data.splits.items():
        if isinstance(images, ArrayImages):
            labels = images.labels.tolist()
        else:
            labels, bad_ones = _read(images, flags.workers)
            bad |= bad_ones
        counted = Counter(labels)
        counts["training" if split == "train" else split] = [counted[label] for label in range(len(data.classes))]
    if flags.json:
        sizes = {name: {split: counts[split][label] for split in counts} for label, name in enumerate(data.classes)}
        print_json({"name": data.name, "classes": sizes, "bad_images": bad, "other_files": data.num_other_files})
        return FAILED if bad else DONE
    rows = [
        (name, *(f"{some:,}" for some in of_class))
        for name, *of_class in zip(data.classes, *counts.values(), strict=True)
    ]
    total = [("all", *(f"{sum(some):,}" for some in counts.values()))]
    print_table(("class", *counts), [rows, total], left_aligned=1)
    for note in data.notes:
        print(note)
    print(f"{len(bad):,} bad images" + (", which --bad-images skip leaves out:" if bad else ""))
    for name, reason in list(bad.items())[:NAMED_IMAGES]:
        print(f"  {name}: {reason}")
    if len(bad) > NAMED_IMAGES:
        print(f"  and {len(bad) - NAMED_IMAGES:,} more, see --json")
    return FAILED if bad else DONE


def _read(images: "Images", num_workers: int | None) -> tuple[list[int], dict[str, str]]:
    """The labels of the good images, and what is wrong with each of the others."""
    import numpy as np

    from vggkit.data.images import FittedImage
    from vggkit.data.loader import Loader, default_workers, in_parts
    from vggkit.data.preprocessing import Preprocessing

    # Whole images, decoded in colour, are what any training reads; their size does not matter.
    read: Any = FittedImage(3, Preprocessing(8, 3, (0.0,) * 3, (1.0,) * 3))
    parts = in_parts(np.arange(len(images)), 256)
    workers = default_workers() if num_workers is None else num_workers
    loader = Loader(images, read, seed=0, num_workers=workers, pin_memory=False, bad_images="skip")
    labels = [label for _, some in loader.batches(parts, epoch=0) for label in some.tolist() if label >= 0]
    return labels, loader.bad
