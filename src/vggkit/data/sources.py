"""Your own images: from folders, parquet files, tar shards (WebDataset) and the Hugging Face hub."""

from pathlib import Path

from vggkit.data.download import one_line
from vggkit.data.fashion_mnist import DataError
from vggkit.data.folders import open_folder
from vggkit.data.samples import MAX_CLASSES, Images, ImageSource, Sample, printable
from vggkit.data.shards import find_shards
from vggkit.data.tables import HUB_NAME, HUB_PREFIX, open_tables

__all__ = ["ImageSource", "Images", "Sample", "open_images"]


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
            raise DataError(f"{source.name}: expected images for {split}, got none")
    return source
