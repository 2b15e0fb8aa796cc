"""Your own images: from folders, parquet files, tar shards (WebDataset) and the Hugging Face hub."""

import os
from pathlib import Path

from vggkit.data.fashion_mnist import FILES, FULL_NAME, SAMPLE_NAME, Dataset, load
from vggkit.data.folders import open_folder
from vggkit.data.samples import MAX_CLASSES, Images, ImageSource, Sample, printable
from vggkit.data.shards import find_shards
from vggkit.data.tables import HUB_NAME, HUB_PREFIX, open_tables
from vggkit.errors import DataError, one_line

__all__ = ["ImageSource", "Images", "Sample", "open_data", "open_images"]


def open_data(
    data: str,
    *,
    data_dir: Path | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    stream: bool = False,
    epoch_images: int = 0,
) -> Dataset | ImageSource:
    """The data that `data` names: arrays for Fashion-MNIST and a folder in its format, else images to be opened.

    Args:
        data: `fashion-mnist`, `fashion-mnist-sample`, a folder with four IDX files, or as for `open_images`.
        data_dir: where to look for Fashion-MNIST first.
        holdout: as for `open_images`, like all that follow.
        seed: of what is kept out.
        stream: do not copy.
        epoch_images: of a stream.

    Raises:
        DataError: there is nothing, or not what was expected.
    """
    folder = Path(data)
    is_idx = any((folder / f"{file}{suffix}").is_file() for file in FILES for suffix in ("", ".gz"))
    if data in (FULL_NAME, SAMPLE_NAME) or is_idx:
        if stream:
            raise DataError(f"expected parquet files, tar shards or the hub to stream, got {printable(data)}")
        return load(data, data_dir)
    if not data.startswith(HUB_PREFIX) and not os.path.lexists(data):
        raise DataError(
            f"expected {FULL_NAME}, {SAMPLE_NAME}, a folder of images or hub:owner/name, got "
            f"{printable(data)[:200]!r}, where there is nothing, try 'vgg data'"
        )
    return open_images(data, holdout=holdout, seed=seed, stream=stream, epoch_images=epoch_images)


def open_images(data: str, *, holdout: float, seed: int, stream: bool, epoch_images: int) -> ImageSource:
    """The labelled images that `data` names; none of them is opened yet.

    Args:
        data: a folder with `train/<class>/` and `val/<class>/` (also `valid`, `validation`, else `test`); a folder with
            a folder for each class; a folder with parquet files or with tar shards of the WebDataset kind
            (key.jpg and key.cls, or key.json with a label), whose names say the split, or one such file; or
            `hub:owner/name`, or `hub:owner/name:config`, for a data set on the Hugging Face hub.
        holdout: where nothing is there to measure by, the share of each class that is kept out of training.
        seed: of that choice, 0 to 2^32 - 1.
        stream: read parquet files, tar shards and the hub in their order, without a copy on this machine.
        epoch_images: images in an epoch of a stream, above 0; 0 for as many as it says it has.

    Raises:
        DataError: there is nothing, or not what was expected, or what it means is not clear.
    """
    if data.startswith(HUB_PREFIX):
        if not HUB_NAME.fullmatch(data.removeprefix(HUB_PREFIX)):
            raise DataError(f"expected hub:owner/name or hub:owner/name:config, got {printable(data)[:120]!r}")
        return _checked(open_tables(data, None, holdout=holdout, seed=seed, stream=stream, epoch_images=epoch_images))
    path, where = Path(data), printable(data)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError for a null character
        got = f"{where[:200]!r}: {one_line(error)[:100] if isinstance(error, ValueError) else error.strerror}"
        raise DataError(f"expected a folder of images or hub:owner/name, got {got}") from None
    if path.is_file() and path.suffix.lower() not in (".parquet", ".tar"):
        raise DataError(f"{where}: expected a folder of images, a .parquet or a .tar file, got another file")
    if shards := find_shards(path):
        return _checked(open_tables(data, shards, holdout=holdout, seed=seed, stream=stream, epoch_images=epoch_images))
    if stream:
        raise DataError(
            f"{where}: expected parquet files, tar shards or the hub to stream, got a folder, try without --stream"
        )
    return _checked(open_folder(path, holdout, seed))


def _checked(source: ImageSource) -> ImageSource:
    """`source`, if there is something to learn in it and something to measure by."""
    if not 2 <= len(source.classes) <= MAX_CLASSES:
        got = ", ".join(source.classes[:1]) if len(source.classes) < 2 else f"{len(source.classes):,}"
        raise DataError(f"{source.name}: expected 2 to {MAX_CLASSES:,} classes, got {got}")
    for split, images in (("training", source.train), (source.held_out_name, source.held_out)):
        if not len(images):
            raise DataError(f"{source.name}: expected images for {split}, got none, try two or more in a class")
    return source
