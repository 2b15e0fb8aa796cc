"""`open_data`: images from folders, parquet files, tar shards (WebDataset), IDX files and the Hugging Face hub."""

import os
from dataclasses import replace
from pathlib import Path

from vggkit.data.fashion_mnist import FILES, FULL_NAME, SAMPLE_NAME, load
from vggkit.data.folders import open_folder
from vggkit.data.hub import HUB_PREFIX, open_hub
from vggkit.data.imagenet import open_flat_validation
from vggkit.data.samples import MAX_CLASSES, ArrayImages, Images, ImageSource, Sample, StoredImages, holdout_mask
from vggkit.data.shards import SUFFIXES, find_shards, open_shards
from vggkit.errors import DataError, check_type, nearest, one_line, shown

__all__ = ["ArrayImages", "ImageSource", "Images", "Sample", "open_data"]


def open_data(
    data: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    stream: bool = False,
    epoch_images: int = 0,
) -> ImageSource:
    """The labelled images that `data` names; no image file is opened yet.

    Args:
        data: `fashion-mnist`, `fashion-mnist-sample`, or a folder with four IDX files; a folder with `train/<class>/`
            and `val/<class>/` or `test/<class>/`; a folder with a folder for each class; a folder of ImageNet's
            validation images, see `open_flat_validation`; a folder with parquet files or with tar shards
            (WebDataset), whose names say the split, or one such file; or `hub:owner/name`, or
            `hub:owner/name:config`, for a data set on the Hugging Face hub.
        data_dir: where to look for Fashion-MNIST first.
        holdout: if there is no validation or test split, the share of each class to keep out of training; 0 for data
            that is only evaluated on, which may have any number of classes.
        seed: for the choice of these images, 0 to 2^32 - 1.
        stream: read parquet files, tar shards and the hub in their order, without a local copy.
        epoch_images: images in an epoch of a stream; 0 for as many as it states.

    Raises:
        DataError: the data is missing, damaged, ambiguous or in an unknown layout.

    >>> source = open_data("fashion-mnist-sample")
    >>> source
    fashion-mnist-sample: 2,000 train, 1,000 test images of 10 classes
    >>> len(source.train), len(source.held_out), source.held_out_name, source.classes[0]
    (2000, 1000, 'test', 't-shirt')
    """
    check_type(data, str | os.PathLike, "the name or the folder of data", "open_data('photos')")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise DataError(f"expected a seed from 0 to {2**32 - 1}, got {seed!r}, try 0")
    name, where = os.fspath(data), shown(os.fspath(data), 200)
    folder = Path(name)
    is_idx = any(os.path.isfile(folder / f"{file}{suffix}") for file in FILES for suffix in ("", ".gz"))  # noqa: PTH113
    if name in (FULL_NAME, SAMPLE_NAME) or is_idx:
        if stream:
            raise DataError(f"expected parquet files, tar shards or the hub to stream, got {where}")
        return load(name, data_dir).source
    if name.startswith(HUB_PREFIX):
        source = open_hub(name, not holdout, stream, epoch_images)
    else:
        _check_exists(folder, where)
        shards = find_shards(folder)
        if stream and not shards:
            raise DataError(
                f"{where}: expected parquet files, tar shards or the hub to stream, got a folder, try without --stream"
            )
        if shards:
            source = open_shards(shards, not holdout, stream, epoch_images)
        else:
            source = open_flat_validation(folder) or open_folder(folder, not holdout)
    train = source.train
    if list(source.splits) == ["train"] and isinstance(train, StoredImages):
        splits = {"all": train}
        if holdout:
            chosen = holdout_mask(train.labels, holdout, seed)
            splits = {"train": train.subset(~chosen), "validation": train.subset(chosen)}
        source = replace(source, splits=splits)
    return _check_usable(source, holdout)


def _check_exists(path: Path, where: str) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError for a null character
        reason = one_line(error)[:100] if isinstance(error, ValueError) else error.strerror
        expected = f"{FULL_NAME}, {SAMPLE_NAME}, a folder of images or hub:owner/name"
        close = nearest(where, [FULL_NAME, SAMPLE_NAME]) or "'vgg data'"
        raise DataError(f"expected {expected}, got {where!r}: {reason}, try {close}") from None
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: expected a folder of images, a .parquet or a .tar file, got another file")


def _check_usable(source: ImageSource, holdout: float) -> ImageSource:
    """`source` without empty splits; raises `DataError` if classes, training or evaluation images are missing."""
    num_classes = len(source.classes)
    if not (2 if holdout else 1) <= num_classes <= MAX_CLASSES:
        got = ", ".join(source.classes[:1]) if num_classes < 2 else f"{num_classes:,}"
        raise DataError(f"{source.name}: expected 2 to {MAX_CLASSES:,} classes, got {got}")
    for split in ("train", source.held_out_name):
        if not len(source.splits.get(split, source.train)):
            what = "training" if split == "train" else split
            raise DataError(f"{source.name}: expected images for {what}, got none, try two or more in a class")
    return replace(source, splits={split: images for split, images in source.splits.items() if len(images)})
